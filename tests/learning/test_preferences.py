"""DPO's family and KTO against the papers' definitions in Python floats, closed forms and known optima."""

import math
import random

import pytest
import torch
from torch import Tensor

from tutelage.learning.losses import margins, pair_mean, winner_mask
from tutelage.learning.preferences import dpo_loss, ipo_loss, kto_loss, liked_pair_accuracy, reference_point, simpo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slope(loss: Tensor, at: Tensor) -> list[float]:
    return torch.autograd.grad(loss.sum(), at)[0].tolist()


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_at_the_reference_the_loss_is_log_2(beta: float) -> None:
    """The slope there is -beta/2."""
    h = torch.zeros(3, requires_grad=True)
    loss = dpo_loss(h, beta=beta)
    assert loss.tolist() == pytest.approx([0.693147] * 3, abs=1e-6)
    assert slope(loss, h) == pytest.approx([-beta / 2] * 3)
    assert dpo_loss(h, beta=beta, smoothing=0.3).tolist() == pytest.approx([0.693147] * 3, abs=1e-6)
    assert ipo_loss(h, beta=beta).tolist() == pytest.approx([1 / (4 * beta**2)] * 3)


def test_value_and_slope() -> None:
    """-beta sigmoid(-beta h)."""
    h = torch.tensor([0.3, -4.0, 25.0], requires_grad=True)
    loss = dpo_loss(h, beta=0.1)
    assert loss[0].item() == pytest.approx(0.678260, abs=1e-6)
    assert slope(loss, h)[0] == pytest.approx(-0.049250, abs=1e-6)
    assert slope(dpo_loss(h, beta=0.1), h) == pytest.approx([-0.1 * sigmoid(-0.1 * x) for x in (0.3, -4.0, 25.0)])


def test_a_swapped_pair_costs_beta_h_more() -> None:
    """log sigmoid(x) - log sigmoid(-x) = x."""
    h = torch.linspace(-50, 50, 11)
    torch.testing.assert_close(dpo_loss(-h, beta=0.3) - dpo_loss(h, beta=0.3), 0.3 * h)
    swapped = dpo_loss(-h, beta=0.3, smoothing=0.2) - dpo_loss(h, beta=0.3, smoothing=0.2)
    torch.testing.assert_close(swapped, (1 - 2 * 0.2) * 0.3 * h)


def test_where_the_losses_are_least() -> None:
    """cDPO at sigmoid(beta h) = 1 - epsilon, IPO at h = 1 / (2 beta), DPO nowhere."""
    h = torch.tensor(math.log(0.8 / 0.2) / 0.5, requires_grad=True)
    assert slope(dpo_loss(h, beta=0.5, smoothing=0.2), h) == pytest.approx(0, abs=1e-7)
    assert slope(dpo_loss(h, beta=0.5, smoothing=0.1), h) < -0.01
    assert slope(dpo_loss(h, beta=0.5), h) < -0.05
    h = torch.tensor(1 / (2 * 0.25), requires_grad=True)
    assert slope(ipo_loss(h, beta=0.25), h) == pytest.approx(0, abs=1e-7)
    assert slope(ipo_loss(h + 0.1, beta=0.25), h) == pytest.approx(0.2, abs=1e-6)
    assert ipo_loss(h, beta=0.25).item() == 0


def fitted(pair_loss, wins: Tensor, reference: Tensor) -> Tensor:
    """A tabular policy (n,) trained to convergence; wins (n, n) is how often the row beats the column."""
    logits = reference.log().clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        ratios = logits.log_softmax(0) - reference.log()
        loss = (wins * pair_loss(margins(ratios[None])[0])).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().softmax(0)


def test_the_optimum_is_the_reference_times_the_exponential_reward() -> None:
    """With Bradley-Terry preferences of a reward r, pi* is pi_ref e^(r / beta) / Z and h* is (r_w - r_l) / beta."""
    chance, beta = torch.Generator().manual_seed(0), 0.7
    rewards = torch.randn(6, generator=chance, dtype=torch.float64)
    reference = torch.randn(6, generator=chance, dtype=torch.float64).softmax(0)
    wins = torch.sigmoid(rewards[:, None] - rewards[None, :]).fill_diagonal_(0)
    best = fitted(lambda h: dpo_loss(h, beta=beta), wins, reference)
    expected = [float(p) * math.exp(float(r) / beta) for p, r in zip(reference, rewards)]
    assert best.tolist() == pytest.approx([x / sum(expected) for x in expected], abs=1e-6)
    ratios = best.log() - reference.log()
    assert (ratios[0] - ratios[1]).item() == pytest.approx((rewards[0] - rewards[1]).item() / beta, abs=1e-4)


def test_ipo_stays_near_the_reference_where_dpo_runs_away() -> None:
    """Azar et al. 2023, section 5: one of two responses wins with probability p; the margin is (2 p - 1) / (2 beta)."""
    reference = torch.tensor([0.3, 0.7], dtype=torch.float64)
    for p in (0.6, 1.0):
        wins = torch.tensor([[0, p], [1 - p, 0]], dtype=torch.float64)
        ratios = fitted(lambda h: ipo_loss(h, beta=0.5), wins, reference).log() - reference.log()
        assert (ratios[0] - ratios[1]).item() == pytest.approx((2 * p - 1) / (2 * 0.5), abs=1e-5)


def test_simpo_wants_a_margin() -> None:
    """Meng et al. 2024: the gradient is that of DPO at a margin that is gamma / beta smaller."""
    h = torch.tensor([0.4, -1.0, 3.0], requires_grad=True)
    expected = [-math.log(sigmoid(2.5 * x - 1.4)) for x in h.tolist()]
    assert simpo_loss(h, beta=2.5, gamma=1.4).tolist() == pytest.approx(expected, abs=1e-6)
    assert slope(simpo_loss(h, beta=2.5, gamma=1.4), h) == pytest.approx(
        [-2.5 * sigmoid(1.4 - 2.5 * x) for x in h.tolist()], abs=1e-6
    )
    assert simpo_loss(torch.tensor(1.4 / 2.5), beta=2.5, gamma=1.4).item() == pytest.approx(math.log(2))


def test_a_ranking_is_the_mean_of_its_strict_pairs() -> None:
    """K of 2 to 4 in one batch, with ties and a ranking of ties only; expected values pair by pair."""
    chance = random.Random(1)
    ranks = [[2, 1], [1, 3, 2, 3], [1, 1, 1], [4, 3, 2, 1]]
    policy, reference = ([[chance.gauss(-20, 5) for _ in row] for row in ranks] for _ in range(2))
    per_ranking = []
    for r, p, q in zip(ranks, policy, reference):
        losses = [
            -math.log(sigmoid(0.1 * ((p[w] - q[w]) - (p[i] - q[i]))))
            for w in range(len(r))
            for i in range(len(r))
            if r[w] < r[i]
        ]
        per_ranking += [sum(losses) / len(losses)] if losses else []
    assert len(per_ranking) == 3

    def padded(rows: list[list], fill: float) -> Tensor:
        return torch.tensor([row + [fill] * (4 - len(row)) for row in rows])

    exists = padded([[True] * len(row) for row in ranks], False)
    margin = margins(padded(policy, 0.0) - padded(reference, 0.0))
    actual = pair_mean(dpo_loss(margin, beta=0.1), winner_mask(padded(ranks, 0), exists))
    assert actual.item() == pytest.approx(sum(per_ranking) / 3, abs=1e-6)


def test_prompts_cancel() -> None:
    """A constant added to all log-probabilities of one prompt changes no margin."""
    chance = torch.Generator().manual_seed(0)
    ratios, prompts = torch.randn(3, 4, generator=chance), 100 * torch.randn(3, 1, generator=chance)
    torch.testing.assert_close(margins(ratios + prompts), margins(ratios), atol=1e-4, rtol=0)


# --- KTO


def kto_by_definition(ratios, liked, strangers, beta, weight_up, weight_down):
    """Ethayarajh et al. 2024, section 4.1, in Python floats."""
    z0 = max(0.0, sum(strangers) / len(strangers))
    losses = []
    for ratio, up in zip(ratios, liked):
        value = weight_up * sigmoid(beta * (ratio - z0)) if up else weight_down * sigmoid(beta * (z0 - ratio))
        losses.append((weight_up if up else weight_down) - value)
    return sum(losses) / len(losses)


RATIOS, LIKED = [1.5, -0.7, 12.0, -9.0, 0.0], [True, False, False, True, True]


@pytest.mark.parametrize("strangers", [[2.0, -1.0, 4.0], [-3.0, 1.0]])
@pytest.mark.parametrize(("up", "down"), [(1.0, 1.0), (1.3, 0.4)])
def test_kto_is_its_definition(strangers: list[float], up: float, down: float) -> None:
    z0 = reference_point(torch.tensor(strangers))
    loss = kto_loss(torch.tensor(RATIOS), torch.tensor(LIKED), z0, beta=0.2, desirable=up, undesirable=down)
    assert loss.item() == pytest.approx(kto_by_definition(RATIOS, LIKED, strangers, 0.2, up, down), abs=1e-6)


def test_ktos_slope() -> None:
    """-+ beta lambda sigmoid (1 - sigmoid) / B: up for liked, down for others, smaller further away from z0."""
    ratios = torch.tensor(RATIOS, requires_grad=True)
    loss = kto_loss(ratios, torch.tensor(LIKED), torch.tensor(0.5), beta=0.2, desirable=1.0, undesirable=3.0)
    expected = []
    for ratio, up in zip(RATIOS, LIKED):
        s = sigmoid(0.2 * (ratio - 0.5))
        expected.append((-1.0 if up else 3.0) * 0.2 * s * (1 - s) / 5)
    assert slope(loss, ratios) == pytest.approx(expected, abs=1e-7)


def test_the_reference_point_is_a_constant_and_never_below_zero() -> None:
    ratios = torch.tensor([3.0, 1.0], requires_grad=True)
    z0 = reference_point(ratios)
    assert z0.item() == 2.0 and not z0.requires_grad
    assert reference_point(torch.tensor([-3.0, 1.0])).item() == 0.0
    assert reference_point(torch.zeros(0)).item() == 0.0


def test_liked_above_is_the_share_of_all_pairs() -> None:
    chance = random.Random(0)
    rewards, liked = [float(chance.randint(0, 6)) for _ in range(40)], [chance.random() < 0.3 for _ in range(40)]
    pairs = [(a, b) for a, up in zip(rewards, liked) if up for b, other in zip(rewards, liked) if not other]
    assert any(a == b for a, b in pairs)  # a tie counts one half
    assert liked_pair_accuracy(torch.tensor(rewards), torch.tensor(liked)) == pytest.approx(
        sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    )
    assert liked_pair_accuracy(torch.tensor([1.0, 2.0]), torch.tensor([True, True])) is None
    assert liked_pair_accuracy(torch.tensor([1.0, 2.0]), torch.tensor([False, False])) is None
