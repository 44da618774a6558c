"""Statistics of a set of responses.

distinct-n: the number of different n-grams divided by the number of all n-grams (Li et al. 2016). Only the first tokens
of each response count: long responses repeat themselves more, so distinct-n of whole responses mostly measures length.
"""

from collections.abc import Sequence


def distinct(responses: Sequence[Sequence[int]], n: int, first: int) -> float | None:
    """Share of different n-grams among all n-grams in each response's first `first` tokens; None if there are none."""
    openings = [response[:first] for response in responses]
    grams = [tuple(ids[i : i + n]) for ids in openings for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
