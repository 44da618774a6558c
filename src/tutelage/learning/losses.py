"""The losses of the training stages: tensors in, a scalar out.

Next-token loss: GPT (Radford et al. 2018, eq. 1), in `head.py`. Ranking loss: InstructGPT (Ouyang et al. 2022, eq. 1).
Policy and value losses: PPO (Schulman et al. 2017, eq. 7 and 9), with the value clipped like the policy.
Ours: each mean is over the tokens in the mask or, with `total`, over those of a whole optimizer step, so that four
microbatches give the gradient of one large batch. Ties in a ranking are dropped; the mean is over the remaining pairs.
Pure functions of tensors: no model, no device, no randomness.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor, total: Tensor | float | None = None) -> Tensor:
    """Sum of x over the mask, divided by `total` (default: the number of set elements).

    Elements outside the mask are ignored, even NaN.
    """
    mask = mask.bool()
    count = mask.sum().clamp(min=1) if total is None else total
    return torch.where(mask, x, torch.zeros_like(x)).sum() / count


def ranking_loss(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """-log sigmoid(r_w - r_l), averaged over all strict pairs of each ranking (Ouyang et al. 2022, eq. 1).

    scores (P, K), one per response; ranks (P, K) ints, 1 is best and ties are equal; mask (P, K), True where there is
    a response, because rankings may differ in K. Without ties the mean over a ranking's pairs is the paper's
    1/C(K,2) times their sum. The paper does not treat ties; ours leave both the sum and the count.
    """
    return pair_mean(F.softplus(-margins(scores)), winner_mask(ranks, mask))


def margins(values: Tensor) -> Tensor:
    """(P, K) -> (P, K, K): value i minus value j, at row i and column j."""
    return values[:, :, None] - values[:, None, :]


def winner_mask(ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """(P, K) ranks, 1 is best -> (P, K, K), True where response i (row) ranks strictly above response j (column)."""
    pairs = ranks[:, :, None] < ranks[:, None, :]
    return pairs if mask is None else pairs & mask[:, :, None] & mask[:, None, :]


def pair_mean(losses: Tensor, pairs: Tensor) -> Tensor:
    """Mean of the losses (P, K, K) over each prompt's pairs (P, K, K), then over prompts: a scalar.

    Each prompt is one batch element, as in Ouyang et al. 2022, section 3.5. Prompts without a pair do not count.
    """
    count = pairs.sum((1, 2))
    per_prompt = torch.where(pairs, losses, torch.zeros_like(losses)).sum((1, 2)) / count.clamp(min=1)
    return masked_mean(per_prompt, count > 0)


def pair_accuracy(scores: Tensor, pairs: Tensor) -> float:
    """Share of the pairs (P, K, K) that the scores (P, K) order as the ranks do; equal scores count one half."""
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

    All (B, T): one row per response, one column per token; mask is set where the policy chose the token.
    Returns scalars (loss, clip_fraction). Ours: the mean is over tokens, so long responses weigh more.
    """
    surrogate, clipped = clipped_surrogate(logprobs, old_logprobs, advantages, clip)
    return -masked_mean(surrogate, mask, total), masked_mean(clipped.float(), mask)


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """min(ratio A, clip(ratio) A) per token, and True where the clipped term is the smaller one: both (B, T)."""
    # The clamp keeps the ratio finite where a token's probability is close to 0.
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
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
    """Half the squared error of the value (Schulman et al. 2017, eq. 9), clipped as in OpenAI's PPO2.

    All (B, T) -> a scalar. The clipped value is within `clip` of the old one. The larger of the two squared errors
    counts, so moving further than `clip` brings no gain.
    """
    clipped_values = old_values + (values - old_values).clamp(-clip, clip)
    errors = torch.maximum((values - returns).square(), (clipped_values - returns).square())
    return 0.5 * masked_mean(errors, mask, total)
