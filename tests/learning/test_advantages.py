"""Shaped rewards, GAE and whitening, against RLAX's test values, worked examples and the paper's sum in Python."""

import math

import pytest
import torch
from torch import Tensor

from tutelage.learning.advantages import gae, shaped_rewards, whiten


def gae_by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The double sum of GAE, eq. 16, in Python floats."""
    T = len(rewards)
    delta = [rewards[t] + gamma * (values[t + 1] if t + 1 < T else 0.0) - values[t] for t in range(T)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, T)) for t in range(T)]


@pytest.mark.parametrize(
    ("lam", "expected"),
    [(0.0, [0.08, 0.21, 0.19]), (0.95, [0.450975, 0.3905, 0.19]), (1.0, [0.48, 0.40, 0.19])],
)
def test_worked_example(lam: float, expected: list[float]) -> None:
    rewards, values = torch.tensor([[-0.02, 0.01, 0.99]]), torch.tensor([[0.5, 0.6, 0.8]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=lam)
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert returns[0].tolist() == pytest.approx([a + v for a, v in zip(expected, [0.5, 0.6, 0.8])], abs=1e-6)


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (1.0, [-1.45118, -4.4557, 2.5396, 0.5249, -0.49]),
        (0.7, [-0.676979, -5.248167, 2.4846, 0.6704, -0.49]),
        (0.4, [0.56731, -6.042, 2.3431, 0.815, -0.49]),
    ],
)
def test_example_of_rlax(lam: float, expected: list[float]) -> None:
    """RLAX bootstraps from V_5 = -1. Ours ends there, so 0.99 * V_5 is added to the last reward."""
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0, -0.5 + 0.99 * -1.0]])
    advantages, _ = gae(rewards, torch.tensor([[1.0, 4, -3, -2, -1]]), torch.ones(1, 5), gamma=0.99, lam=lam)
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("lam", "expected"), [(1.0, [3.0, 2, 1, 0]), (0.7, [2.2899, 1.73, 1, 0]), (0.4, [1.725, 1.46, 1, 0])]
)
def test_example_of_rlax_with_an_end_inside(lam: float, expected: list[float]) -> None:
    """RLAX ends an episode by a discount of 0 at the fourth step. Ours has a second row: one token, then garbage."""
    rewards = torch.tensor([[0.0, 0, 0, 0], [1 + 0.9 * -1, math.nan, 7, 7]])
    values = torch.tensor([[-3.0, -2, -1, 0], [5, 9, math.nan, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=lam)
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-3)
    assert advantages[1].tolist() == pytest.approx([-4.9, 0, 0, 0], abs=1e-6)
    assert returns[1].tolist() == pytest.approx([0.1, 0, 0, 0], abs=1e-6)


def test_ragged_rows_by_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(3, 6, generator=generator), torch.randn(3, 6, generator=generator)
    lengths = (6, 1, 4)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0)):
        advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
        for row, n in enumerate(lengths):
            expected = gae_by_definition(rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam)
            assert advantages[row].tolist() == pytest.approx(expected + [0.0] * (6 - n), abs=1e-5)
            if gamma == lam == 1.0:  # Monte Carlo: reward to go
                to_go = [rewards[row, t:n].sum().item() for t in range(n)]
                assert returns[row, :n].tolist() == pytest.approx(to_go, abs=1e-5)


def test_exact_values_leave_no_advantage_on_average() -> None:
    """A fair coin pays 3 or 1 at the last step: V = 2 before the coin, 3 or 1 after it."""
    rewards, values = torch.tensor([[0.0, 3.0], [0.0, 1.0]]), torch.tensor([[2.0, 3.0], [2.0, 1.0]])
    for lam in (0.0, 0.5, 1.0):
        advantages, _ = gae(rewards, values, torch.ones(2, 2), gamma=1.0, lam=lam)
        assert advantages.mean(0).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_rewards_sum_to_the_objective() -> None:
    """The sum over a response is r - beta (log pi - log pi_SFT), with the score at the last token."""
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(2, 4, generator=generator).requires_grad_()
    reference = torch.randn(2, 4, generator=generator)
    reference[1, 2:] = math.inf
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    rewards = shaped_rewards(torch.tensor([2.0, -1.0]), logprobs, reference, mask, kl_coef=0.3)
    log_ratio = (logprobs - reference).tolist()
    assert rewards[0].tolist() == pytest.approx([-0.3 * x for x in log_ratio[0][:3]] + [2 - 0.3 * log_ratio[0][3]])
    assert rewards[1].tolist() == pytest.approx([-0.3 * log_ratio[1][0], -1 - 0.3 * log_ratio[1][1], 0, 0])
    assert not rewards.requires_grad


def test_without_kl_the_reward_is_the_score() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]])
    rewards = shaped_rewards(torch.tensor([0.7]), logprobs, logprobs, torch.ones(1, 3), kl_coef=5.0)
    assert rewards[0].tolist() == pytest.approx([0, 0, 0.7])


def test_whitening_example() -> None:
    """The example of "The N implementation details of RLHF with PPO", which keeps the mean of 1.6; ours removes it."""
    x = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    expected = [0.05080678 - 1.6, 0.43810508 - 1.6, 0.82540339 - 1.6]
    assert whiten(x, torch.ones(3, 3))[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_whitening_laws() -> None:
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(4, 6, generator=generator), torch.rand(4, 6, generator=generator) > 0.4
    x[~mask] = math.nan
    white = whiten(x, mask)
    kept: Tensor = white[mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-5)
    assert kept.var(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    assert not white[~mask].any()
    torch.testing.assert_close(whiten(x[mask][None], torch.ones(1, int(mask.sum())))[0], kept)
    torch.testing.assert_close(whiten(3 * x + 7, mask), white, atol=1e-4, rtol=1e-4)
    assert whiten(torch.tensor([[4.0]]), torch.ones(1, 1)).item() == 0.0
