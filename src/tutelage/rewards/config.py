"""What is told about rewards, beside their names."""

from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import InputError
from tutelage.learning.ensembles import Combination


@dataclass(frozen=True, kw_only=True)
class RewardsConfig:
    """How several rewards become one, and how a scorer knows us."""

    ensemble: Combination = "mean"
    """Of several rewards: their mean; wco, the worst case; uwo, the mean less --uwo-lambda times the variance."""
    uwo_lambda: float = 0.1
    """Price of the members' variance in uwo; Coste et al. 2024: .1 in PPO, .5 in best-of-n."""
    reward_key_file: Path | None = None
    """A file with the key that HTTP scorers ask for; it is sent to them as a bearer token, and kept nowhere."""

    def reward_key(self) -> str:
        """What the file holds. Raises InputError for one that cannot be read, or is no key."""
        if self.reward_key_file is None:
            return ""
        try:
            key = self.reward_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise InputError(f"--reward-key-file {self.reward_key_file}: cannot be read; check the path") from None
        if not (key and key.isascii() and key.isprintable()):
            raise InputError(f"--reward-key-file {self.reward_key_file}: holds no key; it is one line of ASCII")
        return key
