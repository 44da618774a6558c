"""What answers look like, whoever wrote them.

distinct-n: different n-grams over all n-grams of a set of answers (Li et al. 2016), on their first tokens only,
since long answers repeat themselves more than short ones and would be compared by length otherwise.
"""

from collections.abc import Sequence


def distinct(answers: Sequence[Sequence[int]], n: int, first: int) -> float | None:
    """Share of different n-grams among all of the answers' first `first` tokens; None when there is none."""
    grams = [tuple(a[i : i + n]) for a in (answer[:first] for answer in answers) for i in range(len(a) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
