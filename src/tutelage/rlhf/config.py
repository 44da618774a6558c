"""What PPO, RLOO and GRPO are told alike: how a policy is sampled, judged, held back and improved.

Defaults suit a laptop; InstructGPT's numbers (Ouyang et al. 2022, appendix C.4) stand beside them.
"""

from dataclasses import dataclass

from tutelage.errors import InputError
from tutelage.learning.kl import LARGEST_ERROR
from tutelage.rewards.config import RewardsConfig
from tutelage.runs.snapshots import SnapshotConfig

COLDEST = 0.01  # temperature: far below it each state has one token that is ever drawn, and nothing to compare it with
STEEPEST = 1 / LARGEST_ERROR  # gain at which one iteration takes the price of drift to 0


@dataclass(frozen=True, kw_only=True)
class RLConfig(SnapshotConfig, RewardsConfig):
    """A policy that learns from rollouts of its own."""

    iterations: int = 30
    """Rollouts; InstructGPT has 500."""
    batch: int = 64
    """Responses per rollout; InstructGPT has 512."""
    max_tokens: int = 40
    """Longest response in tokens."""
    max_prompt: int = 64
    """Longest prompt in tokens; older turns are dropped until it fits."""
    temperature: float = 1.0
    """Of the sampled responses and of every log-probability."""
    lr: float = 2e-4
    """Peak rate of the policy's AdamW, for a few million parameters; InstructGPT sweeps 2.55e-6 to 2.55e-5 at 1.3B."""
    warmup: int = 5
    """Iterations in which the policy's rate rises from a tenth; 10 in InstructGPT. Constant afterwards."""
    kl_coef: float = 0.02
    """Price of one nat of drift from the SFT policy: beta in eq. 2 (InstructGPT: .02)."""
    kl_target: float = 0.0
    """Nats per response to which --kl-coef is steered (Ziegler et al. 2019: 6); below --kl-budget; 0: it is fixed."""
    kl_gain: float = 0.1
    """How fast: its change an iteration is this times the KL's relative error, taken as .2 at most (theirs: .1)."""
    kl_budget: float = 8.0
    """Nats per response at which training stops; the best policy within it is kept."""
    missing_end: float = -1.0
    """Score of a response without an end of turn; demonstrations score 0."""
    grad_clip: float = 1.0
    """Largest gradient norm of a network."""
    ema: float = 0.9
    """Decay per step of the averaged policy that is saved; .992 in InstructGPT, over 4,000 steps."""
    ptx_windows: int = 16
    """Pretraining windows per optimizer step; InstructGPT has 8 per response."""
    ptx_window: int = 0
    """Tokens of such a window; 0 is the model's whole context, or 512 of it."""
    ptx_share: float = 1.0
    """Length of the pretraining gradient, the loss's own being 1."""
    ptx_calibration: int = 5
    """Iterations over which the coefficient makes it so; fixed afterwards."""

    @property
    def algorithm(self) -> str:
        """Its name as people say it."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_dropout:
            raise InputError("--lora-dropout would move the ratio off 1 before the first step; leave it out")
        if self.ema >= 1:
            raise InputError(f"--ema {self.ema:g}: must be below 1, or the policy that is saved never learns")
        if self.temperature < COLDEST:
            raise InputError(
                f"--temperature {self.temperature:g}: must be at least {COLDEST:g}, as a policy learns from what it "
                "might have said"
            )
        if self.kl_target:
            self._check_target()

    def _check_target(self) -> None:
        """Raises InputError where the price of drift could not follow the KL, or the budget ends the run before."""
        target = f"--kl-target {self.kl_target:g}"
        if not 0 < self.kl_gain < STEEPEST:
            raise InputError(
                f"--kl-gain {self.kl_gain:g}: must be above 0 and below {STEEPEST:g} for the price of drift to follow "
                f"{target}; give .1"
            )
        if not self.kl_coef:
            raise InputError(f"{target} --kl-coef 0: a price of 0 stays 0 however it is adaptive_kl_coef; give .02")
        if self.kl_target >= self.kl_budget:
            raise InputError(
                f"{target}: the run would stop at --kl-budget {self.kl_budget:g} before it gets there; give a larger "
                "budget"
            )


@dataclass(frozen=True, kw_only=True)
class GroupConfig(RLConfig):
    """A policy that learns from several responses to each prompt, held against each other."""

    samples: int
    """Responses per prompt."""

    @property
    def rows(self) -> int:
        """Responses per optimizer step."""
        return self.batch

    @property
    def passes(self) -> int:
        """Over each rollout."""
        return 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise InputError("--samples 1: a response is held against the others to its prompt; give 2 or more")
        if self.batch % self.samples:
            raise InputError(
                f"--batch {self.batch} --samples {self.samples}: responses come in groups of {self.samples}; "
                "give a multiple of it as --batch"
            )
