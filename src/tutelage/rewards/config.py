"""Settings for rewards: how several are combined, and the key for HTTP scorers."""

from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import InputError
from tutelage.learning.ensembles import Combination
from tutelage.options import Advanced, NonNegative, out_of_range


@dataclass(frozen=True, kw_only=True)
class RewardsConfig:
    """How several rewards are combined, and the key for HTTP scorers."""

    ensemble: Advanced[Combination] = "mean"
    """How to combine several rewards: mean; wco, the worst case; uwo, the mean less --uwo-lambda times the variance."""
    uwo_lambda: Advanced[NonNegative] = 0.1
    """Weight of the members' variance in uwo. Coste et al. 2024 use .1 in PPO and .5 in best-of-n."""
    reward_key_file: Advanced[Path | None] = None
    """File with the key for HTTP scorers. The key is sent as a bearer token and is not stored anywhere."""

    def __post_init__(self) -> None:
        if wrong := out_of_range(self):
            raise InputError(wrong)

    def reward_key(self) -> str:
        """The key in the file; empty without a file. Raises InputError if it cannot be read or holds no key."""
        if self.reward_key_file is None:
            return ""
        try:
            key = self.reward_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise InputError(f"--reward-key-file {self.reward_key_file}: cannot be read; check the path") from None
        if not (key and key.isascii() and key.isprintable()):
            raise InputError(f"--reward-key-file {self.reward_key_file}: holds no key; write one line of ASCII text")
        return key
