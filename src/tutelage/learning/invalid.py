"""What responses earn that are not valid ones: cut at the limit, or shorter than a response should be.

    scores (B,), which are invalid (B,) -> rewards (B,)

An invalid response earns its own score, but at most the mean score of the valid ones, minus a penalty. So among cut
responses the better ones still earn more, and none pays for a reward model that likes silence or half a sentence.
Ours: TRL subtracts a constant, Huang et al. 2024 replace the score by one. docs/results.md compares the three.
Pure functions of tensors: no model, no device, no randomness.
"""

import torch
from torch import Tensor


def penalised(scores: Tensor, invalid: Tensor, penalty: float) -> Tensor:
    """(B,) scores, with those of the `invalid` responses lowered; without any valid one, by the penalty alone."""
    if not invalid.any():
        return scores
    lowered = scores if invalid.all() else scores.minimum(scores[~invalid].mean())
    return torch.where(invalid, lowered - penalty, scores)
