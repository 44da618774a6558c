"""Advantages and losses from several responses to each prompt, without a value network.

    rewards (P, K) of K responses to each of P prompts -> advantages (P, K) -> a loss of log-probabilities (P K, T)

RLOO: Ahmadian et al. 2024, after Kool et al. 2019. GRPO: DeepSeekMath (Shao et al. 2024, eq. 3). Dr. GRPO: Liu et al.
2025, which leaves out GRPO's two divisions because they favour easy prompts and long wrong responses.
The gradient of GRPO's k3 is that of the forward KL, KL(pi_ref || pi), not of the KL in RLHF's objective
(`docs/deviations.md`). RLOO's KL penalty is part of the reward, and exact.
Pure functions of tensors: no model, no device, no randomness.
"""

import torch
from torch import Tensor

from tutelage.learning.kl import k3
from tutelage.learning.losses import clipped_surrogate, masked_mean

# Added to a group's standard deviation, in units of reward; a group of equal rewards then has advantages of 0.
EPSILON = 1e-4


def leave_one_out(rewards: Tensor) -> Tensor:
    """r_i minus the mean of the other K - 1 rewards (Ahmadian et al. 2024, section 3.3): (P, K) -> (P, K).

    The baseline does not depend on the response it is subtracted for, so the gradient stays unbiased.
    """
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def group_relative(rewards: Tensor, *, scaled: bool) -> Tensor:
    """r_i minus the group's mean; if `scaled`, over the group's standard deviation: (P, K) -> (P, K).

    GRPO (Shao et al. 2024, section 4.1) is scaled, Dr. GRPO (Liu et al. 2025) is not. The paper leaves the standard
    deviation open; ours is the population's, because all K responses are present, plus EPSILON.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True, unbiased=False) + EPSILON) if scaled else centred


def tied_groups(rewards: Tensor) -> float:
    """Share of the prompts whose K responses all have the same reward (P, K): these prompts teach nothing."""
    return float((rewards == rewards[:, :1]).all(1).float().mean())


def reinforce_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """REINFORCE with the response as one action (Ahmadian et al. 2024): mean over responses of -A log pi(y|x).

    logprobs, mask (B, T); advantages (B,). log pi(y|x) is the sum over a response's tokens, not divided by its length.
    """
    response_logprobs = torch.where(mask.bool(), logprobs, torch.zeros_like(logprobs)).sum(1)
    return -(advantages * response_logprobs).mean()


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    kl_coef: float,
    divisor: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """-(clipped surrogate - beta k3) per token (Shao et al. 2024, eq. 3 and 4).

    advantages (B,), the other tensors (B, T). A response's tokens are summed and divided by its length (GRPO), or by
    `divisor`, the same for all responses (Dr. GRPO); then comes the mean over responses.
    Returns scalars (loss, clip_fraction, kl), the last two as token means.
    """
    surrogate, clipped = clipped_surrogate(logprobs, old_logprobs, advantages[:, None], clip)
    kl = k3(logprobs, ref_logprobs)
    per_response = torch.where(mask.bool(), kl_coef * kl - surrogate, torch.zeros_like(kl)).sum(1)
    loss = (per_response / (divisor or mask.sum(1).clamp(min=1))).mean()
    return loss, masked_mean(clipped.float(), mask), masked_mean(kl.detach(), mask)
