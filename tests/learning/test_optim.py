"""Schedules at their known points, first steps in closed form, Muon's five steps as a polynomial of singular values."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.learning.optim import (
    EMA,
    Muon,
    adamw,
    clipped_step,
    make_optimizers,
    orthogonalize,
    set_learning_rate,
    warmup_cosine,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def polar(matrix: Tensor, sigma: Any = torch.ones_like) -> Tensor:
    """U f(S) V' of the singular value decomposition."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ torch.diag(sigma(s)) @ vh


def quintic(sigma: Tensor) -> Tensor:
    """Five Newton-Schulz steps on one singular value (Jordan et al. 2024)."""
    sigma = sigma / sigma.norm()
    for _ in range(5):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    return sigma


@pytest.mark.parametrize(("quarter", "factor"), [(0, 1.0), (1, 0.8682), (2, 0.55), (3, 0.2318), (4, 0.1)])
def test_cosine_to_a_tenth(quarter: int, factor: float) -> None:
    assert warmup_cosine(25 * quarter, steps=100, warmup=0, floor=0.1) == pytest.approx(factor, abs=1e-4)
    assert warmup_cosine(20 + 25 * quarter, steps=120, warmup=20, floor=0.1) == pytest.approx(factor, abs=1e-4)


def test_warm_up_is_linear_and_never_zero() -> None:
    rising = [warmup_cosine(step, steps=100, warmup=4, floor=0.1) for step in range(5)]
    assert rising == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert warmup_cosine(1000, steps=100, warmup=4, floor=0.1) == pytest.approx(0.1)


def test_rates_follow_the_schedule_from_their_own_start() -> None:
    w = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([{"params": [w], "lr": 0.4}])
    for factor in (0.5, 0.25):
        set_learning_rate(optimizer, factor)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * factor)


def test_five_steps_map_singular_values_as_published() -> None:
    sigma = torch.tensor([0.6, 0.3, 0.1, 0.05, 0.01, 0.001])
    sigma = torch.cat([(1 - sigma.square().sum()).sqrt()[None], sigma])  # so that the norm is 1
    u, v = (torch.linalg.qr(random(9, 7, seed=s))[0] for s in (0, 1))
    x = u @ torch.diag(sigma) @ v.T
    inside = u.T @ orthogonalize(x) @ v  # diagonal, because the singular vectors are unchanged
    expected = [0.7229, 1.0796, 0.7121, 0.7581, 0.6989, 0.4705]
    assert inside.diagonal()[1:].tolist() == pytest.approx(expected, abs=2e-3)
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-3
    assert orthogonalize(torch.tensor([[-3.0]])).item() == pytest.approx(-0.6964, abs=1e-3)


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_orthogonalize_is_the_polynomial(shape: tuple[int, int]) -> None:
    x = random(*shape)
    torch.testing.assert_close(orthogonalize(x), polar(x, quintic).float(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(orthogonalize(100 * x), orthogonalize(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(orthogonalize(x.T), orthogonalize(x).T, atol=1e-4, rtol=1e-4)
    singular = torch.linalg.svdvals(orthogonalize(x, dtype=torch.bfloat16))
    assert singular.min() > 0.4 and singular.max() < 1.3


def test_muon_by_hand_for_two_steps() -> None:
    """Nesterov momentum 0.95, scale sqrt(max(1, rows/cols)), decoupled decay."""
    w = nn.Parameter(random(12, 3))
    expected, momentum = w.detach().clone().double(), torch.zeros(12, 3).double()
    optimizer = Muon([w], lr=0.02, weight_decay=0.1)
    for seed in (1, 2):
        gradient = random(12, 3, seed=seed)
        w.grad = gradient
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        update = 0.05 * gradient + 0.95 * momentum
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * math.sqrt(12 / 3) * polar(update, quintic)
    torch.testing.assert_close(w.detach(), expected.float(), atol=1e-4, rtol=1e-3)


def test_muon_takes_fused_maps_apart() -> None:
    fused = nn.Parameter(torch.zeros(10, 6))
    fused.parts = [6, 2, 2]  # type: ignore[attr-defined]
    fused.grad = random(10, 6)
    Muon([fused], lr=1.0).step()
    expected = [-polar(part, quintic) for part in fused.grad.split([6, 2, 2])]
    torch.testing.assert_close(fused.detach(), torch.cat(expected).float(), atol=1e-3, rtol=1e-3)


def test_every_parameter_has_one_optimizer(make_gpt: Any) -> None:
    for model in (make_gpt("modern", tied=False), make_gpt("gpt2")):
        muon, rest = make_optimizers(model, "muon", muon_lr=0.02, lr=1e-3, weight_decay=0.1, dtype=torch.float32)
        groups = [[p for g in o.param_groups for p in g["params"]] for o in (muon, rest)]
        names = {id(p): name for name, p in model.named_parameters()}
        assert sorted(names[id(p)] for ps in groups for p in ps) == sorted(names.values())
        hidden = {
            f"blocks.{i}.{part}.weight"
            for i in (0, 1)
            for part in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
        }
        assert {names[id(p)] for p in groups[0]} == hidden


def test_decay_is_for_matrices_of_the_blocks(make_gpt: Any) -> None:
    model = make_gpt("gpt2")
    optimizer = adamw(model.named_parameters(), lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.ndim == 2 and name.startswith("blocks.")), name


def test_first_step_of_adam_in_closed_form() -> None:
    """-lr g / (|g| + eps), after the decoupled decay."""
    w = nn.Parameter(torch.ones(3, 1))
    w.grad = torch.tensor([[0.5], [-2e-5], [0.0]])
    adamw([("w", w)], lr=0.01, weight_decay=0.1, eps=1e-5).step()
    steps = [0.5 / (0.5 + 1e-5), -2e-5 / (2e-5 + 1e-5), 0.0]
    assert w.flatten().tolist() == pytest.approx([1 - 0.01 * 0.1 - 0.01 * s for s in steps], abs=1e-6)


def test_clipping_keeps_the_direction_of_the_gradient() -> None:
    for gradient, expected in (([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])):
        w = nn.Parameter(torch.zeros(2))
        w.grad = torch.tensor(gradient)
        norm = clipped_step([torch.optim.SGD([w], lr=1.0)], [w], 1.0)
        assert norm == pytest.approx(math.hypot(*gradient))
        assert (-w).tolist() == pytest.approx(expected, abs=1e-5)
        assert w.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    w = nn.Parameter(torch.ones(2))
    w.grad = torch.tensor([1.0, bad])
    with pytest.raises(InputError, match="learning rate"):
        clipped_step([torch.optim.SGD([w], lr=1.0)], [w], 1.0)
    assert w.tolist() == [1.0, 1.0]


def test_moving_average_in_closed_form() -> None:
    """(1 - d) sum d^(k-i) theta_i + d^k theta_0."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(5.0)
    average = EMA(model, 0.992)
    for i in range(1, 21):
        model.weight.data.fill_(float(i * i))
        average.update(model)
    expected = 0.992**20 * 5 + 0.008 * sum(0.992 ** (20 - i) * i * i for i in range(1, 21))
    assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-5)
