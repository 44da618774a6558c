"""The settings that PPO, RLOO and GRPO share: sampling, optimisation, the KL penalty and the pretraining mix.

Defaults suit a laptop. InstructGPT's values (Ouyang et al. 2022, appendix C.4) stand beside them.
"""

from dataclasses import dataclass, fields
from typing import Annotated

from tutelage.errors import InputError
from tutelage.learning.kl import MAX_RELATIVE_ERROR
from tutelage.learning.optim import LearningRate
from tutelage.options import Advanced, Count, Natural, NonNegative, Positive, Range, Size
from tutelage.rewards.config import RewardsConfig
from tutelage.runs.snapshots import SnapshotConfig
from tutelage.sampling.distribution import SampledTemperature

Decay = Annotated[float, Range(least=0, below=1, why="at 1 the saved policy would never change")]
GroupSize = Annotated[int, Range(least=2, most=2**20, why="a response is compared with the others to its prompt")]
# At this gain one iteration may take the KL coefficient to 0.
KL_GAIN_LIMIT = 1 / MAX_RELATIVE_ERROR


@dataclass(frozen=True, kw_only=True)
class RLConfig(SnapshotConfig, RewardsConfig):
    """A policy that learns from its own rollouts."""

    iterations: Count = 30
    """Rollouts (paper: 500)."""
    batch: Size = 64
    """Responses per rollout (paper: 512)."""
    max_tokens: Count = 40
    """Longest response in tokens."""
    max_prompt: Count = 64
    """Longest prompt in tokens; the oldest turns of a longer one are dropped."""
    temperature: Advanced[SampledTemperature] = 1.0
    """Sampling temperature; every log-probability is computed at it, too."""
    lr: LearningRate = 2e-4
    """Peak learning rate of the policy, for a few million parameters (paper: 2.55e-6 to 2.55e-5 for 1.3B)."""
    warmup: Advanced[Natural] = 4
    """Iterations over which the learning rate rises from a tenth of its peak; constant afterwards (paper: 10)."""
    kl_coef: NonNegative = 0.02
    """KL coefficient: beta in eq. 2, the penalty for one nat of KL from the SFT policy (paper: .02)."""
    kl_target: Advanced[NonNegative] = 0.0
    """Adapt --kl-coef to reach this KL, in nats per response (Ziegler et al. 2019: 6). 0: --kl-coef stays fixed."""
    kl_gain: Advanced[NonNegative] = 0.1
    """How fast --kl-coef adapts: its relative change per iteration is this times the KL's relative error, which is
    limited to .2 (Ziegler et al. 2019: .1)."""
    kl_budget: NonNegative = 8.0
    """KL budget: training stops when the KL, in nats per response, exceeds it. The best policy within it is kept."""
    missing_end: Advanced[NonNegative] = 1.0
    """Penalty of a response that does not end by itself: it earns its score, at most the mean of valid responses,
    minus this."""
    min_answer: Advanced[Natural] = 0
    """A response with fewer tokens, end of turn included, or with white space alone pays --missing-end, too; 0: none
    does."""
    grad_clip: Advanced[Positive] = 1.0
    """Largest gradient norm of each network."""
    ema: Advanced[Decay] = 0.0
    """Decay per step of the moving average of the policy, which is what is saved; 0 saves the last policy (paper: .992,
    over 4,000 steps)."""
    ptx_windows: Advanced[Size] = 16
    """Windows of pretraining text per optimizer step (paper: 8 per response)."""
    ptx_window: Advanced[Natural] = 0
    """Tokens of a window; 0: the model's context, at most 512."""
    ptx_breaks: Advanced[bool] = True
    """Learn the text's line breaks and ends, too. --no-ptx-breaks: for dialogue with one turn per line, where a line
    break would let another speaker go on."""
    ptx_share: Advanced[NonNegative] = 1.0
    """Norm of the pretraining gradient relative to the policy gradient's."""
    ptx_calibration: Advanced[Natural] = 5
    """Iterations over which the pretraining coefficient is set to reach --ptx-share; fixed afterwards."""

    @property
    def algorithm(self) -> str:
        """The usual name of the algorithm."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_dropout:
            raise InputError(
                "--lora-dropout: in RL dropout would move the ratio off 1 before the first step; leave it out"
            )
        usual = next(field.default for field in fields(self) if field.name == "warmup")
        if self.warmup > self.iterations and self.warmup != usual:  # a short run may end within the usual warm-up
            raise InputError(
                f"--warmup {self.warmup}: longer than the run of --iterations {self.iterations}; give at most as many"
            )
        if self.min_answer > self.max_tokens:
            raise InputError(
                f"--min-answer {self.min_answer}: no response would be long enough; --max-tokens is {self.max_tokens}"
            )
        if self.kl_target:
            self._check_target()

    def _check_target(self) -> None:
        """Raises InputError where the KL coefficient could not adapt, or the KL budget would end the run before."""
        target = f"--kl-target {self.kl_target:g}"
        if not 0 < self.kl_gain < KL_GAIN_LIMIT:
            raise InputError(
                f"--kl-gain {self.kl_gain:g}: must be above 0 and below {KL_GAIN_LIMIT:g} for --kl-coef to follow "
                f"{target}; give .1"
            )
        if not self.kl_coef:
            raise InputError(f"{target} --kl-coef 0: a coefficient of 0 cannot be adapted; give .02")
        if self.kl_target >= self.kl_budget:
            raise InputError(
                f"{target}: the run would stop at --kl-budget {self.kl_budget:g} before it gets there; give a larger "
                "--kl-budget"
            )


@dataclass(frozen=True, kw_only=True)
class GroupConfig(RLConfig):
    """A policy that learns from several responses to each prompt, compared with each other."""

    samples: GroupSize
    """Responses per prompt."""

    @property
    def rows(self) -> int:
        """Responses per optimizer step."""
        return self.batch

    @property
    def passes(self) -> int:
        """Passes over each rollout."""
        return 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch % self.samples:
            raise InputError(
                f"--batch {self.batch} --samples {self.samples}: responses come in groups of {self.samples}; "
                "give a multiple of it as --batch"
            )
