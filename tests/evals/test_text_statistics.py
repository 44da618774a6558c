"""distinct-n by hand."""

import pytest

from tutelage.evals.text_statistics import distinct


def test_distinct_by_hand() -> None:
    responses = [[1, 2, 1, 2], [1, 2, 3], [4]]
    assert distinct(responses, 1, 12) == 4 / 8
    assert distinct(responses, 2, 12) == 3 / 5  # 12 21 12 12 23: three different of five; [4] has none
    assert distinct(responses, 3, 12) == 3 / 3  # 121 212 123


def test_only_the_first_tokens_count() -> None:
    assert distinct([[1, 2, 3, 1, 1, 1, 1]], 1, 3) == 1.0
    assert distinct([[1, 2, 3, 1, 1, 1, 1]], 1, 7) == pytest.approx(3 / 7)


def test_without_n_grams_it_is_undefined() -> None:
    assert distinct([[], [1]], 2, 12) is None
