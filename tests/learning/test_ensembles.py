"""Ensembles of rewards: the definitions of Coste et al. 2024 against the standard library, and their properties."""

import random
import statistics

import pytest
import torch

from tutelage.learning.ensembles import combine, uncertainty_weighted, worst_case


def test_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-1.0, 6.0]])
    assert combine(scores, "mean", 9.0).tolist() == [1.0, 2.0]
    assert combine(scores, "wco", 9.0).tolist() == [-1.0, 0.0]
    assert combine(scores, "uwo", 0.5).tolist() == pytest.approx([1 - 0.5 * 8 / 3, 2 - 0.5 * 8])


@pytest.mark.parametrize("uwo_lambda", [0.0, 0.1, 0.5])
def test_by_definition(uwo_lambda: float) -> None:
    chance = random.Random(0)
    columns = [[chance.gauss(0, 2) for _ in range(5)] for _ in range(20)]
    scores = torch.tensor(columns, dtype=torch.float64).T
    assert combine(scores, "mean", uwo_lambda).tolist() == pytest.approx([statistics.fmean(c) for c in columns])
    assert worst_case(scores).tolist() == [min(c) for c in columns]
    expected = [statistics.fmean(c) - uwo_lambda * statistics.pvariance(c) for c in columns]
    assert uncertainty_weighted(scores, uwo_lambda).tolist() == pytest.approx(expected)
    assert bool((worst_case(scores) <= combine(scores, "mean", uwo_lambda)).all())


def test_members_that_agree_are_one() -> None:
    one = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for how in ("mean", "wco", "uwo"):
        torch.testing.assert_close(combine(one.expand(4, -1), how, 0.5), one)
