"""Several responses to one prompt, held against each other: advantages and losses without a value network.

    rewards (P, K) of K responses to each of P prompts -> advantages (P, K) -> a loss of log-probabilities (P K, T)

RLOO: Ahmadian et al. 2024, after Kool et al. 2019. GRPO: DeepSeekMath (Shao et al. 2024, eq. 3). Dr. GRPO: Liu et al.
2025, without the two divisions that favour easy prompts and long wrong answers.
The gradient of GRPO's k3 is that of the forward divergence, KL(pi_ref || pi), not of the one that RLHF's objective has
(`docs/deviations.md`); RLOO's price of drift is in the reward, and is exact.
Pure functions of tensors: no model, no device, no randomness.
"""

import torch
from torch import Tensor

from tutelage.learning.kl import k3
from tutelage.learning.losses import clipped_surrogate, masked_mean

EPSILON = 1e-4  # added to a group's standard deviation, in units of reward: equal rewards give 0


def leave_one_out(rewards: Tensor) -> Tensor:
    """r_i less the mean of the other K - 1 (Ahmadian et al. 2024, section 3.3): (P, K) -> (P, K).

    The baseline does not depend on what it is taken from, so the gradient stays unbiased.
    """
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def group_relative(rewards: Tensor, *, scaled: bool) -> Tensor:
    """r_i less the group's mean, over its standard deviation if `scaled` (population, as all K are there).

    (P, K) -> (P, K). Scaled is GRPO; Dr. GRPO is not.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True, unbiased=False) + EPSILON) if scaled else centred


def tied_groups(rewards: Tensor) -> float:
    """Share of the prompts whose K responses all have the same reward (P, K): nothing is learned from them."""
    return float((rewards == rewards[:, :1]).all(1).float().mean())


def reinforce_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """REINFORCE with the response as one action: mean over responses of -A log pi(y|x).

    logprobs, mask (B, T); advantages (B,). log pi(y|x) is the sum over a response's tokens, whatever its length.
    """
    whole = torch.where(mask.bool(), logprobs, torch.zeros_like(logprobs)).sum(1)
    return -(advantages * whole).mean()


def grpo_loss(
    logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, advantages: Tensor, mask: Tensor, *,
    clip: float, kl_coef: float, divisor: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """-(clipped surrogate - beta k3) per token (Shao et al. 2024, eq. 3). All (B, T) but advantages, (B,).

    Each response is the sum over its tokens, over its length, or over `divisor`, the same for all (Dr. GRPO); then the
    mean over responses. Returns scalars (loss, clip_fraction, kl), the latter two token means.
    """
    surrogate, clipped = clipped_surrogate(logprobs, old_logprobs, advantages[:, None], clip)
    drift = k3(logprobs, ref_logprobs)
    tokens = torch.where(mask.bool(), kl_coef * drift - surrogate, torch.zeros_like(drift)).sum(1)
    loss = (tokens / (divisor or mask.sum(1).clamp(min=1))).mean()
    return loss, masked_mean(clipped.float(), mask), masked_mean(drift.detach(), mask)
