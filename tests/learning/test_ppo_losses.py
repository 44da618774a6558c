"""PPO's clipped losses at points worked out by hand, on RLAX's example, and against the policy gradient."""

import math

import pytest
import torch
from torch import Tensor

from tutelage.learning.losses import policy_loss, value_loss

ONE = torch.ones(1, 1)


def policy_at(ratio: float, advantage: float) -> tuple[float, float, float]:
    """Objective (the loss negated), its gradient in the log-probability, and the clip fraction of one token."""
    logprobs = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    loss, fraction = policy_loss(logprobs, torch.tensor([[-1.0]]), advantage * ONE, ONE, clip=0.2)
    (gradient,) = torch.autograd.grad(-loss, logprobs)
    return -loss.item(), gradient.item(), fraction.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "gradient", "clipped"),
    [
        (1.3, 1.0, 1.2, 0.0, 1.0),  # already beyond the clip, upwards
        (0.7, -1.0, -0.8, 0.0, 1.0),  # already beyond the clip, downwards
        (1.5, -1.0, -1.5, -1.5, 0.0),  # beyond the clip in the wrong direction: the full gradient
        (0.5, 1.0, 0.5, 0.5, 0.0),
        (1.1, 2.0, 2.2, 2.2, 0.0),
        (1.0, -3.0, -3.0, -3.0, 0.0),
    ],
)
def test_clipped_objective(ratio: float, advantage: float, objective: float, gradient: float, clipped: float) -> None:
    assert policy_at(ratio, advantage) == pytest.approx((objective, gradient, clipped), abs=1e-6)


def test_example_of_rlax() -> None:
    logits = torch.tensor([[1.0, 1, 1], [2, 0, 0], [-1, -2, -3]])
    old_logits = torch.tensor([[1.0, 1, 1], [2, 0, 0], [-3, -2, -1]])

    def chosen(z: Tensor) -> Tensor:  # actions 0, 1, 2
        return (z - z.exp().sum(-1, keepdim=True).log()).diagonal()[None]

    for sign, expected in ((1, -0.1711778), (-1, 0.1933333)):
        advantages = sign * torch.tensor([[0.3, 0.2, 0.1]])
        loss, _ = policy_loss(chosen(logits), chosen(old_logits), advantages, torch.ones(1, 3), clip=0.2)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def ragged(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logprobs, old, advantages = (torch.randn(3, 5, generator=generator) for _ in range(3))
    return logprobs, old, advantages, torch.arange(5) < torch.tensor([[5], [2], [3]])


def test_at_ratio_one_it_is_the_policy_gradient() -> None:
    logprobs, _, advantages, mask = ragged()
    logprobs.requires_grad_()
    loss, fraction = policy_loss(logprobs, logprobs.detach(), advantages, mask, clip=0.2)
    reinforce = -(logprobs * advantages)[mask].mean()
    assert torch.equal(torch.autograd.grad(loss, logprobs)[0], torch.autograd.grad(reinforce, logprobs)[0])
    assert fraction.item() == 0.0


def test_no_advantage_no_gradient() -> None:
    logprobs, old, _, mask = ragged()
    logprobs.requires_grad_()
    loss, _ = policy_loss(logprobs, old, torch.zeros(3, 5), mask, clip=0.2)
    assert not torch.autograd.grad(loss, logprobs)[0].any()


def test_the_mean_is_over_tokens_and_masked_tokens_are_unseen() -> None:
    logprobs, old, advantages, mask = ragged()
    by_hand = []
    for row, length in enumerate((5, 2, 3)):
        for t in range(length):
            ratio, a = math.exp(logprobs[row, t] - old[row, t]), advantages[row, t].item()
            by_hand.append(-min(ratio * a, min(max(ratio, 0.8), 1.2) * a))
    advantages[~mask] = math.nan
    old[~mask] = math.inf
    loss, _ = policy_loss(logprobs, old, advantages, mask, clip=0.2)
    assert loss.item() == pytest.approx(sum(by_hand) / 10, abs=1e-5)
    loss, _ = policy_loss(logprobs, old, advantages, mask, clip=0.2, total=20)
    assert loss.item() == pytest.approx(sum(by_hand) / 20, abs=1e-5)


def test_minibatches_add_up_to_the_batch() -> None:
    logprobs, old, advantages, mask = ragged()
    whole, _ = policy_loss(logprobs, old, advantages, mask, clip=0.2)
    parts = [
        policy_loss(*(x[r : r + 1] for x in (logprobs, old, advantages, mask)), clip=0.2, total=10) for r in range(3)
    ]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), abs=1e-6)


def test_a_lost_token_makes_no_infinity() -> None:
    loss, _ = policy_loss(torch.tensor([[500.0]]), torch.zeros(1, 1), -ONE, ONE, clip=0.2)
    assert loss.item() == pytest.approx(math.exp(20), rel=1e-5)


def test_what_a_bad_token_loses_goes_to_the_likely_ones() -> None:
    """Softmax (0.7, 0.2, 0.1), advantage -1 for the third; a step of 1 along the gradient: (.832, .144, .024)."""
    logits = torch.tensor([0.7, 0.2, 0.1]).log().requires_grad_()
    chosen = logits.log_softmax(0)[2].view(1, 1)
    loss, _ = policy_loss(chosen, chosen.detach(), -ONE, ONE, clip=0.2)
    after = (logits - torch.autograd.grad(loss, logits)[0]).softmax(0)
    assert after.tolist() == pytest.approx([0.832, 0.144, 0.024], abs=5e-4)


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [(0.5, 1.0, 0.32, 0.0), (0.5, -1.0, 1.125, 1.5), (0.1, 1.0, 0.405, -0.9), (-0.5, 1.0, 1.125, -1.5)],
)
def test_clipped_value_loss(value: float, target: float, loss: float, gradient: float) -> None:
    values = torch.tensor([[value]], requires_grad=True)
    actual = value_loss(values, 0 * ONE, target * ONE, ONE, clip=0.2)
    assert actual.item() == pytest.approx(loss, abs=1e-6)
    assert torch.autograd.grad(actual, values)[0].item() == pytest.approx(gradient, abs=1e-6)


def test_value_loss_is_masked_and_normalised() -> None:
    values, old, targets, mask = ragged(1)
    expected = 0.5 * sum(
        max(
            (values[b, t] - targets[b, t]) ** 2,
            (old[b, t] + max(-0.2, min(0.2, values[b, t] - old[b, t])) - targets[b, t]) ** 2,
        )
        for b, length in enumerate((5, 2, 3))
        for t in range(length)
    )
    targets[~mask] = math.nan
    assert value_loss(values, old, targets, mask, clip=0.2).item() == pytest.approx(expected.item() / 10, abs=1e-5)
    assert value_loss(values, old, targets, mask, clip=0.2, total=5).item() == pytest.approx(
        expected.item() / 5, abs=1e-5
    )
