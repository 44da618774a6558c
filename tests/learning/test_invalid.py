"""What invalid responses earn, by hand."""

import pytest
import torch

from tutelage.learning.invalid import penalised


@pytest.mark.parametrize(
    ("scores", "invalid", "expected"),
    [
        ([1.0, 2.0, -3.0], [0, 0, 0], [1.0, 2.0, -3.0]),
        ([1.0, 3.0, 5.0, -3.0], [0, 0, 1, 1], [1.0, 3.0, 1.5, -3.5]),  # at most 2, the mean of 1 and 3
        ([4.0, -2.0], [1, 1], [3.5, -2.5]),  # with no valid one to compare with
        ([100.0, 90.0, 110.0], [1, 0, 0], [99.5, 90.0, 110.0]),  # whatever the scale
    ],
)
def test_an_invalid_response_earns_at_most_the_mean_of_the_others(
    scores: list[float], invalid: list[int], expected: list[float]
) -> None:
    assert penalised(torch.tensor(scores), torch.tensor(invalid).bool(), 0.5).tolist() == expected
