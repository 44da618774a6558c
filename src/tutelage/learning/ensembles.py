"""Several reward models' scores of the same responses -> one score each (Coste et al. 2024).

    scores (M, B), one row per member -> mean | worst case | mean - lambda variance -> (B,)

Members must be on one scale first, demonstrations at 0 with one spread: otherwise the worst case is whoever is lowest
by habit, and the variance measures habits, too. Pure functions of tensors.
"""

from typing import Literal

from torch import Tensor

Combination = Literal["mean", "wco", "uwo"]


def combine(scores: Tensor, how: Combination, uwo_lambda: float) -> Tensor:
    """One score per response, of several members' (M, B)."""
    if how == "mean":
        return scores.mean(0)
    return worst_case(scores) if how == "wco" else uncertainty_weighted(scores, uwo_lambda)


def worst_case(scores: Tensor) -> Tensor:
    """WCO (Coste et al. 2024, section 3): what the most sceptical member gives."""
    return scores.amin(0)


def uncertainty_weighted(scores: Tensor, uwo_lambda: float) -> Tensor:
    """UWO (Coste et al. 2024, section 3): the mean less lambda times the members' variance, that of the population."""
    return scores.mean(0) - uwo_lambda * scores.var(0, correction=0)
