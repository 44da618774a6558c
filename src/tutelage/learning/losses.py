"""The losses of every stage: tensors in, a scalar out.

Next-token loss: GPT (Radford et al. 2018, eq. 1), in `head.py`. Ranking loss: InstructGPT (Ouyang et al. 2022, eq. 1).
Policy and value losses: PPO (Schulman et al. 2017, eq. 7 and 9), the value clipped like the policy.
Ours: every mean is over tokens that count, or, with `total`, over those of a whole optimizer step, so that four small
batches give the gradient of one large one; ties of a ranking are dropped and the mean is over the pairs that remain.
Pure functions of tensors: no model, no device, no randomness.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor, total: Tensor | float | None = None) -> Tensor:
    """Sum of x where mask is set, over `total` (default: how many are set). What is not set, even NaN, is unseen."""
    mask = mask.bool()
    count = mask.sum().clamp(min=1) if total is None else total
    return torch.where(mask, x, torch.zeros_like(x)).sum() / count


def ranking_loss(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """-log sigmoid(r_w - r_l) over all strict pairs of each ranking (Ouyang et al. 2022, eq. 1).

    scores (P, K) reward of each answer, ranks (P, K) ints with 1 best and ties equal, mask (P, K) True where the
    answer exists (rankings may have different K). Sum form of the paper's 1/C(K,2); ties leave both numerator and
    denominator.
    """
    return pair_mean(F.softplus(-margins(scores)), winning(ranks, mask))


def margins(values: Tensor) -> Tensor:
    """(P, K) -> (P, K, K): by how much the answer of the row exceeds that of the column."""
    return values[:, :, None] - values[:, None, :]


def winning(ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """(P, K) ranks, 1 best -> (P, K, K) True where the answer of the row beats that of the column; never for ties."""
    pairs = ranks[:, :, None] < ranks[:, None, :]
    return pairs if mask is None else pairs & mask[:, :, None] & mask[:, None, :]


def pair_mean(losses: Tensor, pairs: Tensor) -> Tensor:
    """(P, K, K) a loss for each pair -> a scalar. One prompt is one element: mean over its pairs, then over prompts.

    A prompt without a pair is none.
    """
    count = pairs.sum((1, 2))
    per_prompt = torch.where(pairs, losses, torch.zeros_like(losses)).sum((1, 2)) / count.clamp(min=1)
    return masked_mean(per_prompt, count > 0)


def pairs_right(scores: Tensor, pairs: Tensor) -> float:
    """Share of the pairs (P, K, K) that the scores (P, K) order as the ranks do; equal scores are right one half."""
    right = margins(scores).sign().add(1) / 2
    return float(masked_mean(right, pairs))


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    total: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate objective, negated (Schulman et al. 2017, eq. 7).

    All (B, T): one row per response, one column per response token; mask is set where the policy chose the token.
    Returns scalars (loss, clip_fraction). The mean is over tokens: long responses weigh more.
    """
    surrogate, clipped = clipped_surrogate(logprobs, old_logprobs, advantages, clip)
    return -masked_mean(surrogate, mask, total), masked_mean(clipped.float(), mask)


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """min(ratio A, clip(ratio) A) of each token, and where the clip holds it back: all (B, T), no mean yet."""
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()  # the clamp keeps a lost token from making an inf
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    return torch.minimum(unclipped, clipped), clipped < unclipped


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float,
    total: Tensor | float | None = None,
) -> Tensor:
    """Half the squared error of the value, no better than if it had moved at most `clip` (PPO2's clipped form).

    All (B, T). The larger of both errors counts, so that a step too far is not rewarded.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns).square(), (near - returns).square())
    return 0.5 * masked_mean(errors, mask, total)
