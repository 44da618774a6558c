"""GRPO: group-relative policy optimisation (DeepSeekMath, Shao et al. 2024), and Dr. GRPO (Liu et al. 2025).

    repeat: prompts -> k sampled responses each -> scores -> advantage = (score - group mean) / group standard deviation
            -> clipped policy steps, token by token, with a KL penalty (k3) in the loss

There is no value network. Dr. GRPO removes two divisions: by the standard deviation, which favours prompts that are
nearly all right or all wrong, and by the response length, which favours long wrong responses.
Ours: with --corpus a share of the pretraining loss is mixed in, as in PPO-ptx. The default, like the paper, has none.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tutelage.learning.groups import group_relative, grpo_loss
from tutelage.learning.kl import mean_k3
from tutelage.learning.optimizer import Epochs
from tutelage.options import Advanced, NonNegative, Positive, Size
from tutelage.rlhf.config import GroupConfig, GroupSize
from tutelage.rlhf.groups import GroupAlgorithm, learn_in_groups
from tutelage.rlhf.history import Metrics
from tutelage.rlhf.setup import RLInputs
from tutelage.sampling.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GroupConfig):
    """One GRPO run. Defaults suit a laptop; the paper's values (section 4.2) stand beside them."""

    variant: Literal["grpo", "dr-grpo"] = "grpo"
    """grpo, or dr-grpo without the divisions by standard deviation and by response length."""
    samples: GroupSize = 8
    """Responses per prompt (paper: 64, to 16 prompts)."""
    minibatch: Advanced[Size] = 64
    """Responses per optimizer step."""
    epochs: Advanced[Epochs] = 1
    """Passes over each rollout (paper: 1)."""
    clip: Advanced[Positive] = 0.2
    """Clip range of the ratio; not printed in the paper."""
    kl_coef: NonNegative = 0.04
    """Weight of the k3 KL penalty in the loss (paper: .04; Liu et al. 2025: 0). Not the beta of PPO and RLOO."""

    @property
    def algorithm(self) -> str:
        return {"grpo": "GRPO", "dr-grpo": "Dr. GRPO"}[self.variant]

    @property
    def rows(self) -> int:
        return self.minibatch

    @property
    def passes(self) -> int:
        return self.epochs


def grpo(inputs: RLInputs, config: GRPOConfig = GRPOConfig()) -> None:
    """Optimise a policy against a reward with GRPO or Dr. GRPO, without a value network.

    Example: tutelage grpo --policy runs/sft --reward runs/reward --prompts prompts.jsonl --out runs/grpo
    """
    learn_in_groups(GRPO, inputs, config)


def estimate(rollout: Rollout, config: GRPOConfig) -> Tensor:
    """(B,) advantages of whole responses. The KL penalty is in the loss."""
    scores = rollout.scores.view(-1, config.samples)
    return group_relative(scores, scaled=config.variant == "grpo").flatten()


def loss(logprobs: Tensor, minibatch: Rollout, advantages: Tensor, config: GRPOConfig) -> tuple[Tensor, Metrics]:
    """The clipped objective of each token, with its KL penalty."""
    mask, old = minibatch.responses.mask, minibatch.logprobs
    divisor = config.max_tokens if config.variant == "dr-grpo" else None
    value, clip_fraction, kl = grpo_loss(
        logprobs,
        old,
        minibatch.ref_logprobs,
        advantages,
        mask,
        clip=config.clip,
        kl_coef=config.kl_coef,
        divisor=divisor,
    )
    approx_kl = mean_k3(old, logprobs.detach(), mask)
    return value, {"kl_loss": kl.item(), "clip_fraction": clip_fraction.item(), "approx_kl": approx_kl.item()}


GRPO = GroupAlgorithm("grpo", estimate, loss)
