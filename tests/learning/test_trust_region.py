"""PPO's penalty and TRPO's step: against explicit matrices, torch.linalg, and a bandit worked out by hand."""

import math

import pytest
import torch

from tutelage.learning.trust_region import (
    MAX_COEF_FACTOR,
    adaptive_penalty_coef,
    conjugate_gradient,
    fisher_product,
    line_search,
    mean_kl,
    natural_step,
    penalised_loss,
    surrogate,
)

# Three arms, pi = (.5, .3, .2), rewards (1, 0, 2): J = .9, so the gradient of J in the logits is pi (r - J).
PI, REWARD = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, 0.0, 2.0])
GRADIENT = torch.tensor([0.05, -0.27, 0.22])
FISHER = torch.diag(PI) - torch.outer(PI, PI)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def positive_definite(size: int) -> torch.Tensor:
    half = seeded(size, size)
    return half @ half.T + 0.1 * torch.eye(size, dtype=torch.double)


# ---- conjugate gradients


def test_conjugate_gradients_solve_what_torch_solves() -> None:
    """Five unknowns, five iterations."""
    a, b = positive_definite(5), seeded(5, seed=1)
    found = conjugate_gradient(lambda v: a @ v, b, 5)
    torch.testing.assert_close(found, torch.linalg.solve(a, b), atol=1e-8, rtol=1e-6)
    early = conjugate_gradient(lambda v: a @ v, b, 3)
    assert (a @ early - b).norm() > 1e-3


def test_as_many_iterations_as_eigenvalues_and_then_no_more() -> None:
    """Two distinct eigenvalues: exact after two iterations, without dividing by a residual of 0."""
    basis = torch.linalg.qr(seeded(6, 6)).Q
    a, b = basis @ torch.diag(torch.tensor([1.0, 1, 1, 4, 4, 4]).double()) @ basis.T, seeded(6, seed=2)
    for iterations in (2, 50):
        found = conjugate_gradient(lambda v: a @ v, b, iterations)
        torch.testing.assert_close(found, torch.linalg.solve(a, b), atol=1e-9, rtol=1e-9)


def test_a_right_side_of_0_has_the_solution_0() -> None:
    assert not conjugate_gradient(lambda v: v, torch.zeros(3), 10).any()


# ---- the Fisher matrix


def test_fisher_products_of_logits_are_the_explicit_matrix() -> None:
    """diag(pi) - pi pi', the mean of it over two states."""
    logits = torch.stack([PI.log(), torch.zeros(3)]).requires_grad_()
    product = fisher_product(logits, [logits])
    uniform = torch.eye(3) / 3 - torch.full((3, 3), 1 / 9)
    for v in torch.eye(6):
        expected = torch.cat([FISHER @ v[:3], uniform @ v[3:]]) / 2
        torch.testing.assert_close(product(v), expected, atol=1e-6, rtol=1e-5)


def test_fisher_products_of_a_network_are_the_expected_outer_products_of_its_scores() -> None:
    """F = sum over states and actions of pi(a) grad log pi(a) grad log pi(a)', by definition, one score at a time."""
    states = seeded(4, 3)
    first, second = seeded(3, 5, seed=1).requires_grad_(), seeded(5, 3, seed=2).requires_grad_()
    weights = [first, second]

    def logits() -> torch.Tensor:
        return (states @ first).tanh() @ second

    explicit = torch.zeros(30, 30, dtype=torch.double)
    for state in range(4):
        for action in range(3):
            logprob = logits()[state].log_softmax(-1)[action]
            score = torch.cat([g.flatten() for g in torch.autograd.grad(logprob, weights)])
            explicit += logprob.exp().detach() * torch.outer(score, score) / 4
    product = fisher_product(logits(), weights)
    for seed in range(3):
        v = seeded(30, seed=seed)
        torch.testing.assert_close(product(v), explicit @ v, atol=1e-5, rtol=1e-4)


# ---- the natural step


@pytest.mark.parametrize(
    ("limit", "length", "kl"), [(0.01, 0.202031, 0.010050), (0.001, 0.063888, 0.001002)], ids=["1e-2", "1e-3"]
)
def test_the_natural_step_of_a_bandit(limit: float, length: float, kl: float) -> None:
    """By hand: F^+ g = (0, -1, 1), the advantages up to a constant, and s'Fs = Var r = 0.49."""
    step = natural_step(GRADIENT, lambda v: FISHER @ v, limit=limit, iterations=10, damping=0.0)
    assert step.tolist() == pytest.approx([0.0, -length, length], abs=2e-6)
    moved = PI.log() + step
    assert mean_kl(PI.log()[None], moved[None]).item() == pytest.approx(kl, abs=2e-6)
    if limit == 0.01:
        assert moved.softmax(-1).tolist() == pytest.approx([0.505103, 0.247622, 0.247275], abs=2e-6)
        gain = (moved.softmax(-1) / PI * PI * (REWARD - 0.9)).sum()
        assert gain.item() == pytest.approx(0.099653, abs=2e-6)


def test_it_is_the_same_policy_in_other_coordinates() -> None:
    """With logits = M theta the natural step leads to the same distribution; the plain gradient's does not."""
    mix = seeded(3, 3, seed=5).float() + 2 * torch.eye(3)
    plain = natural_step(GRADIENT, lambda v: FISHER @ v, limit=0.01, iterations=10, damping=0.0)
    other = natural_step(
        mix.T @ GRADIENT, lambda v: mix.T @ (FISHER @ (mix @ v)), limit=0.01, iterations=10, damping=0.0
    )
    torch.testing.assert_close((PI.log() + mix @ other).softmax(-1), (PI.log() + plain).softmax(-1), atol=1e-4, rtol=0)
    vanilla = (PI.log() + mix @ mix.T @ GRADIENT).softmax(-1) - (PI.log() + GRADIENT).softmax(-1)
    assert vanilla.abs().max() > 0.01


def test_damping_turns_the_step_and_not_its_length() -> None:
    """Its KL by F is still the limit; with growing damping it turns towards the gradient."""
    for damping in (0.0, 0.1, 1e6):
        step = natural_step(GRADIENT, lambda v: FISHER @ v, limit=0.01, iterations=10, damping=damping)
        assert (0.5 * step @ FISHER @ step).item() == pytest.approx(0.01, rel=1e-4)
    assert torch.cosine_similarity(step, GRADIENT, dim=0) > 0.9999


def test_no_gradient_is_no_step() -> None:
    step = natural_step(torch.zeros(3), lambda v: FISHER @ v, limit=0.01, iterations=10, damping=0.1)
    assert not step.any()


# ---- the line search


@pytest.mark.parametrize(
    ("gains", "kls", "expected"),
    [
        ([1.0], [0.015], 1.0),  # 1.5 times the limit is still accepted
        ([1.0, 1.0], [0.016, 0.004], 0.5),  # too far
        ([-1.0, 0.0, 0.1], [0.001, 0.001, 0.001], 0.25),  # worse, no better, better
        ([math.nan, 1.0], [math.nan, 0.001], 0.5),
        ([-1.0] * 4, [0.0] * 4, 0.0),
    ],
)
def test_the_line_search_takes_the_first_share_that_serves(gains, kls, expected) -> None:
    asked: list[float] = []

    def measure(share: float) -> tuple[float, float]:
        asked.append(share)
        return gains[len(asked) - 1], kls[len(asked) - 1]

    share, gain, kl = line_search(measure, 0.01, halvings=3)
    assert share == expected
    assert (gain, kl) == ((gains[-1], kls[-1]) if share else (0.0, 0.0))
    assert asked == [0.5**i for i in range(len(asked))] and len(asked) == len(gains)


# ---- the penalty


def test_the_penalised_loss_by_hand() -> None:
    """Two tokens with ratios 1.2 and 0.5 and advantages 1 and -2; the third is masked."""
    old = torch.tensor([[0.25, 0.4, 0.1]]).log()
    new = torch.tensor([[0.30, 0.2, 0.1]]).log()
    mask = torch.tensor([[True, True, False]])
    advantages = torch.tensor([[1.0, -2.0, 99.0]])
    loss = penalised_loss(new, old, advantages, mask, coef=3.0)
    expected = (1.2 - 1 - math.log(1.2) + 0.5 - 1 - math.log(0.5)) / 2
    assert loss.item() == pytest.approx(3 * expected - (1.2 * 1 + 0.5 * -2) / 2, abs=1e-6)
    assert surrogate(new, old, advantages, mask).item() == pytest.approx(0.1, abs=1e-6)


def test_over_every_token_the_penalty_is_the_exact_kl_and_so_is_its_gradient() -> None:
    """KL(pi_old || pi) by enumeration, each token weighted with the probability that pi_old draws it."""
    old = PI.log()
    theta = torch.tensor([0.1, -0.4, 0.3], requires_grad=True)
    new = theta.log_softmax(-1)
    none, one = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)  # advantages of 0 leave only the penalty
    kl = sum(PI[a] * penalised_loss(new[a].view(1, 1), old[a].view(1, 1), none, one, coef=1.0) for a in range(3))
    exact = (PI * (old - new)).sum()
    assert kl.item() == pytest.approx(exact.item(), abs=1e-6)
    (ours,) = torch.autograd.grad(kl, theta, retain_graph=True)
    torch.testing.assert_close(ours, theta.softmax(-1).detach() - PI, atol=1e-6, rtol=1e-5)


def test_the_coefficient_follows_the_kl() -> None:
    """Halved, kept or doubled depending on the target, and never beyond MAX_COEF_FACTOR."""
    kls = [0.0066, 0.0067, 0.01, 0.0149, 0.0151]
    assert [adaptive_penalty_coef(1.0, kl, 0.01) for kl in kls] == [0.5, 1.0, 1.0, 1.0, 2.0]
    calm = wild = 1.0
    for _ in range(40):
        calm, wild = adaptive_penalty_coef(calm, 0.0, 0.01), adaptive_penalty_coef(wild, 1.0, 0.01)
    assert calm == 1 / MAX_COEF_FACTOR and wild == MAX_COEF_FACTOR
