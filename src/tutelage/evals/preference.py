"""Whose answers are preferred, and how sure that is.

    one preference per prompt (1 won, .5 tie, 0 lost) -> win rate and a 95 % interval

Prompts of one conversation are alike, so the bootstrap draws conversations, not prompts.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2_000


def preference(ours: float, theirs: float) -> float:
    """1 where ours is the higher, .5 where they are equal, 0 where it is the lower."""
    return 0.5 if ours == theirs else float(ours > theirs)


def win_rate(preferences: Sequence[float], clusters: Sequence[str], seed: int) -> tuple[float, tuple[float, float]]:
    """Mean preference with ties one half, and its interval."""
    return mean_with_interval(preferences, clusters, seed)


def mean_with_interval(
    values: Sequence[float], clusters: Sequence[str], seed: int
) -> tuple[float, tuple[float, float]]:
    """Mean of one value per prompt, and the 2.5th and 97.5th percentile over resampled clusters."""
    each = np.asarray(values, dtype=np.float64)
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(member, weights=each, minlength=len(names))
    sizes = np.bincount(member, minlength=len(names))
    drawn = np.random.Generator(np.random.Philox(seed)).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(each.mean()), (float(low), float(high))


def mean(values: Sequence[float]) -> float | None:
    """None where there are none: an accuracy on no pairs is no figure."""
    return sum(values) / len(values) if values else None
