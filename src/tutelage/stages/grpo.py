"""A reward model's taste to a policy by group-relative policy optimisation: GRPO (DeepSeekMath, Shao et al. 2024).

    repeat: prompts -> k sampled responses each -> scores -> advantage = (score - group's mean) / group's deviation
            -> clipped policy steps, token by token, each with a price on the drift from the SFT policy as k3

There is no value network. `--variant dr-grpo` (Liu et al. 2025) divides neither by the deviation, which favours prompts
that are nearly all right or all wrong, nor by each response's length, which favours long wrong answers.
With --corpus a share of the pretraining loss is mixed in, as in PPO-ptx; the paper has none, and so has the default.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from tutelage.learning.groups import group_relative, grpo_loss
from tutelage.learning.kl import mean_k3
from tutelage.rlhf.config import GroupConfig
from tutelage.rlhf.groups import Method, learn_in_groups
from tutelage.rlhf.history import Line
from tutelage.sampling.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GroupConfig):
    """One GRPO run. Defaults suit a laptop; the paper's numbers (section 4.2) stand beside them."""

    variant: Literal["grpo", "dr-grpo"] = "grpo"
    """grpo; dr-grpo, without the divisions by a group's deviation and by a response's length."""
    samples: int = 8
    """Responses per prompt; the paper has 64, of 16 prompts."""
    minibatch: int = 64
    """Responses per optimizer step."""
    epochs: int = 1
    """Passes over each rollout (paper: 1)."""
    clip: float = 0.2
    """How far the ratio may move before the policy's gradient stops; not printed in the paper."""
    kl_coef: float = 0.04
    """Weight of k3 in the loss (paper: .04; Liu et al. 2025: 0); not the beta of PPO and RLOO."""

    @property
    def algorithm(self) -> str:
        return {"grpo": "GRPO", "dr-grpo": "Dr. GRPO"}[self.variant]

    @property
    def rows(self) -> int:
        return self.minibatch

    @property
    def passes(self) -> int:
        return self.epochs


def grpo(
    policy: Path,
    reward: tuple[str, ...],
    prompts: tuple[Path, ...],
    out: Path,
    corpus: tuple[Path, ...] = (),
    judge: str | None = None,
    config: GRPOConfig = GRPOConfig(),
) -> None:
    """Optimise a policy against a reward model without a value network: GRPO, or Dr. GRPO.

    A second reward, the judge, is never learnt from; a run that it comes to dislike is stopped. A demo's panel.json
    judges by gold.

    reward: a run, FILE.py:FUNCTION, module:FUNCTION, or a scorer's URL; several are an ensemble.

    Example: tutelage grpo --policy runs/sft --reward runs/reward --prompts prompts.jsonl --out runs/grpo
    """
    learn_in_groups(GRPO, policy, reward, prompts, out, corpus, judge, config)


def estimate(rollout: Rollout, config: GRPOConfig) -> Tensor:
    """(B,) advantages, the same for all tokens of a response; the price of drift is in the loss."""
    scores = rollout.scores.view(-1, config.samples)
    return group_relative(scores, scaled=config.variant == "grpo").flatten()


def loss(logprobs: Tensor, some: Rollout, advantages: Tensor, config: GRPOConfig) -> tuple[Tensor, Line]:
    """The clipped objective per token, with its price on the drift."""
    value, clipped, kl = grpo_loss(
        logprobs, some.logprobs, some.ref_logprobs, advantages, some.responses.mask, clip=config.clip,
        kl_coef=config.kl_coef, divisor=config.max_tokens if config.variant == "dr-grpo" else None,
    )  # fmt: skip
    moved = mean_k3(some.logprobs, logprobs.detach(), some.responses.mask)
    return value, {"kl_loss": kl.item(), "clip_fraction": clipped.item(), "approx_kl": moved.item()}


GRPO = Method("grpo", estimate, loss)
