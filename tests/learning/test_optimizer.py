"""A scheduled step against SGD done by hand: rate, clipping, and what is returned."""

import pytest
import torch
from torch import nn

from tutelage.learning.optimizer import OptimizerConfig, ScheduledOptimizer, scheduled_adamw

CONFIG = OptimizerConfig(lr=0.5, warmup=0.5, floor=0.2, clip=1.0)


def test_a_step_is_clipped_and_follows_the_schedule() -> None:
    """w = (3, 4), loss |w|^2 / 2: the gradient is w, of norm 5, so each step moves along w / |w| by the rate alone."""
    w = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = ScheduledOptimizer([torch.optim.SGD([w], lr=CONFIG.lr)], [w], CONFIG, steps=4)
    length = 5.0
    for step, factor in enumerate([0.5, 1.0, 1.0, 0.6]):  # two steps of warm-up, then a cosine from 1 to .2
        lr, norm = optimizer.step(w.square().sum() / 2, step)
        assert lr == pytest.approx(0.5 * factor)
        assert norm == pytest.approx(length, rel=1e-5)
        length -= lr
        torch.testing.assert_close(w.detach(), length * torch.tensor([0.6, 0.8]), rtol=1e-5, atol=0)
        assert w.grad is None


def test_adamw_takes_its_rate_and_its_decay_from_the_config() -> None:
    weights = {"matrix": nn.Parameter(torch.ones(2, 2)), "gain": nn.Parameter(torch.ones(2))}
    config = OptimizerConfig(lr=0.1, weight_decay=0.3)
    (adamw,) = scheduled_adamw(weights, config, steps=1).optimizers
    assert [(g["params"], g["lr"], g["weight_decay"]) for g in adamw.param_groups] == [
        ([weights["matrix"]], 0.1, 0.3),
        ([weights["gain"]], 0.1, 0.0),
    ]
