"""Estimators of the Kullback-Leibler divergence against its exact value on a small alphabet."""

import math

import pytest
import torch

from tutelage.learning.kl import adaptive_kl_coef, best_of_n_kl_bound, k1, k3, kl_per_response, mean_k3

P, Q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]  # the policy and its reference
EXACT = sum(p * math.log(p / q) for p, q in zip(P, Q))


def test_expectations_are_the_kl() -> None:
    policy, reference = torch.tensor(P).log(), torch.tensor(Q).log()
    for estimate in (k1(policy, reference), k3(policy, reference)):
        assert (torch.tensor(P) * estimate).sum().item() == pytest.approx(EXACT, abs=1e-6)
    assert (k3(policy, reference) >= 0).all() and (k1(policy, reference) < 0).any()


def test_single_values() -> None:
    half_as_likely = torch.tensor([math.log(0.5)])
    assert k1(half_as_likely, torch.zeros(1)).item() == pytest.approx(-math.log(2))
    assert k3(half_as_likely, torch.zeros(1)).item() == pytest.approx(2 - 1 - math.log(2))
    assert k3(torch.tensor([-500.0]), torch.zeros(1)).isfinite()


def test_per_response_is_a_sum_and_per_token_a_mean() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, math.nan, -9.0]])
    reference = torch.tensor([[-1.5, -2.0, -2.0], [-3.0, 0.0, math.inf]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert kl_per_response(logprobs, reference, mask).tolist() == pytest.approx([0.5 + 0 - 1, 2.0])
    expected = [math.exp(x) - 1 - x for x in (-0.5, 0.0, 1.0, -2.0)]
    assert mean_k3(logprobs, reference, mask).item() == pytest.approx(sum(expected) / 4)


@pytest.mark.parametrize(
    ("n", "nats"), [(1, 0.0), (2, 0.1931), (4, 0.6363), (8, 1.2044), (16, 1.8351), (64, 3.1745), (1024, 5.9324)]
)
def test_best_of_n(n: int, nats: float) -> None:
    assert best_of_n_kl_bound(n) == pytest.approx(nats, abs=1e-4)


@pytest.mark.parametrize(("n", "nats"), [(2, 0.1406), (4, 0.5598), (16, 1.4696)])
def test_with_ties_best_of_n_stays_below_its_bound(n: int, nats: float) -> None:
    """Three outcomes, the most likely is the worst: the best of n is x with probability F(x)^n - F(x-1)^n."""
    below = [0.0, P[0], P[0] + P[1], 1.0]
    best = [below[i + 1] ** n - below[i] ** n for i in range(3)]
    kl = sum(b * math.log(b / p) for b, p in zip(best, P))
    assert kl == pytest.approx(nats, abs=1e-4) and kl < best_of_n_kl_bound(n)


@pytest.mark.parametrize(
    ("kl", "factor"), [(0.0, 0.98976), (-3.0, 0.98976), (7.2, 1.01024), (90.0, 1.01024), (6.6, 1.00512), (6.0, 1.0)]
)
def test_the_coefficient_is_steered_to_the_target(kl: float, factor: float) -> None:
    """lm-human-preferences with a batch of 512: a gain of 512 / 10,000."""
    assert adaptive_kl_coef(0.15, kl, 6.0, 0.0512) == pytest.approx(0.15 * factor, abs=1e-12)


def test_a_coefficient_that_fell_for_long_can_rise_again() -> None:
    """With a gain of 4.9 it falls to a fiftieth per iteration; after 200 it would round to 0 and stay there."""
    coef = 1.0
    for _ in range(300):
        coef = adaptive_kl_coef(coef, 0.0, 6.0, 4.9)
    assert 0 < coef < 1e-300
    assert adaptive_kl_coef(coef, 9.0, 6.0, 4.9) == pytest.approx(1.98 * coef)


def test_the_coefficient_doubles_in_69_batches_at_the_fastest() -> None:
    coef, count = 1.0, 0
    while coef < 2.0:
        coef, count = adaptive_kl_coef(coef, 1e9, 6.0, 0.0512), count + 1
    assert count == 69  # ln 2 / ln 1.01024 = 68.03
