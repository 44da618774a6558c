"""Masked means against hand computations."""

import math

import pytest
import torch

from tutelage.learning.losses import masked_mean


def test_masked_mean() -> None:
    """A mask of ones gives the mean; rows of 4 and 1 tokens by hand; masked elements may be NaN."""
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(masked_mean(x, torch.ones(4, 5)), x.mean())
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    losses = torch.tensor([[1.0, 1, 1, 1], [0, math.nan, math.inf, -math.inf]], requires_grad=True)
    mean = masked_mean(losses, mask)
    assert mean.item() == pytest.approx(0.8)
    assert masked_mean(losses, mask, total=8).item() == pytest.approx(0.5)
    assert torch.autograd.grad(mean, losses)[0].tolist() == [pytest.approx([0.2] * 4), pytest.approx([0.2, 0, 0, 0])]
    assert masked_mean(losses, torch.zeros(2, 4)).item() == 0.0
