"""Win rates and their bootstrapped confidence intervals.

    one preference per prompt (1 win, .5 tie, 0 loss) -> win rate and its 95 % confidence interval

Prompts from one conversation are correlated, so the bootstrap resamples conversations, not prompts.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2_000


def preference(ours: float, theirs: float) -> float:
    """1 if ours is higher, .5 if they are equal, 0 if it is lower."""
    return 0.5 if ours == theirs else float(ours > theirs)


def win_rate(preferences: Sequence[float], clusters: Sequence[str], seed: int) -> tuple[float, tuple[float, float]]:
    """Mean preference, and its 95 % confidence interval. `clusters` names each prompt's conversation."""
    return mean_with_interval(preferences, clusters, seed)


def mean_with_interval(
    values: Sequence[float], clusters: Sequence[str], seed: int
) -> tuple[float, tuple[float, float]]:
    """Mean of one value per prompt, and the 2.5th and 97.5th percentiles of the mean over resampled clusters."""
    array = np.asarray(values, dtype=np.float64)
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(member, weights=array, minlength=len(names))
    sizes = np.bincount(member, minlength=len(names))
    drawn = np.random.Generator(np.random.Philox(seed)).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(array.mean()), (float(low), float(high))


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of an empty sequence: an accuracy over no pairs is undefined."""
    return sum(values) / len(values) if values else None
