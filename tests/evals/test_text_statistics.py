"""distinct-n by hand."""

import pytest

from tutelage.evals.text_statistics import distinct


def test_distinct_by_hand() -> None:
    answers = [[1, 2, 1, 2], [1, 2, 3], [4]]
    assert distinct(answers, 1, 12) == 4 / 8
    assert distinct(answers, 2, 12) == 3 / 5  # 12 21 12 12 23: three different of five; [4] has none
    assert distinct(answers, 3, 12) == 3 / 3  # 121 212 123


def test_only_the_first_tokens_count() -> None:
    assert distinct([[1, 2, 3, 1, 1, 1, 1]], 1, 3) == 1.0
    assert distinct([[1, 2, 3, 1, 1, 1, 1]], 1, 7) == pytest.approx(3 / 7)


def test_nothing_said_is_nothing_to_count() -> None:
    assert distinct([[], [1]], 2, 12) is None
