"""One score per response from the scores of several reward models (Coste et al. 2024).

    scores (M, B), one row per member -> mean | worst case | mean - lambda variance -> (B,)

The members' scores must be on one scale first: demonstrations at mean 0, with equal spread. Otherwise the worst case is
the member that scores lower throughout, and the variance measures differences of scale. Pure functions of tensors.
"""

from typing import Literal

from torch import Tensor

Combination = Literal["mean", "wco", "uwo"]


def combine(scores: Tensor, how: Combination, uwo_lambda: float) -> Tensor:
    """The members' scores (M, B) combined into one score per response (B,)."""
    if how == "mean":
        return scores.mean(0)
    return worst_case(scores) if how == "wco" else uncertainty_weighted(scores, uwo_lambda)


def worst_case(scores: Tensor) -> Tensor:
    """WCO (Coste et al. 2024, section 3): the lowest of the members' scores, (M, B) -> (B,)."""
    return scores.amin(0)


def uncertainty_weighted(scores: Tensor, uwo_lambda: float) -> Tensor:
    """UWO (Coste et al. 2024, section 3): mean - lambda * population variance over the members, (M, B) -> (B,)."""
    return scores.mean(0) - uwo_lambda * scores.var(0, correction=0)
