"""The best-of-n estimate, against values by hand and against every choice of n samples."""

import random
from itertools import combinations

import pytest

from tutelage.evals.best_of_n import best_of_n

SCORES = [0.1, 0.5, 0.3, 0.9, 0.7]


@pytest.mark.parametrize(("n", "expected"), [(1, 0.5), (2, 0.7), (3, 0.8), (4, 0.86), (5, 0.9)])
def test_by_hand(n: int, expected: float) -> None:
    assert best_of_n(SCORES, SCORES, n) == pytest.approx(expected)


@pytest.mark.parametrize("n", range(1, 8))
def test_by_every_choice(n: int) -> None:
    """Mean over all subsets of the gold score of the sample with the highest score; the two scores are independent."""
    rng = random.Random(n)
    scores, gold = ([rng.gauss(0, 1) for _ in range(7)] for _ in range(2))
    favourites = [max(subset, key=lambda i: scores[i]) for subset in combinations(range(7), n)]
    expected = sum(gold[i] for i in favourites) / len(favourites)
    assert best_of_n(scores, gold, n) == pytest.approx(expected)


def test_of_evenly_spread_scores() -> None:
    """The largest of n uniform numbers is n / (n + 1) on average."""
    scores = [(i + 0.5) / 1000 for i in range(1000)]
    for n in (1, 2, 4, 16):
        assert best_of_n(scores, scores, n) == pytest.approx(n / (n + 1), abs=1e-3)
