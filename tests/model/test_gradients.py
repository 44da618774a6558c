"""Hand-written gradients against autograd's."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tutelage.model.gpt import RMSNorm
from tutelage.model.gradients import AddThin, SwiGLU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_rms_norm_is_the_same_function(dtype: torch.dtype) -> None:
    """The output is bit for bit torch's; gradient and second derivative are those of fp64 up to rounding."""
    x, gain, g = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((3, 5, 8), (8,), (3, 5, 8))
    )
    x, gain, g = (t.to(dtype) for t in (x, gain, g))
    norm = RMSNorm(8, 1e-2).requires_grad_(False)
    norm.weight.copy_(gain)
    own, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    found, expected = norm(own), F.rms_norm(exact, (8,), gain.double(), 1e-2)
    assert torch.equal(found, F.rms_norm(x, (8,), gain, 1e-2))
    (slope,) = torch.autograd.grad(found, own, g, create_graph=True)
    (steep,) = torch.autograd.grad(expected, exact, g.double(), create_graph=True)
    close: Any = dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else dict(atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(slope.double(), steep, **close)
    (curve,), (bend,) = torch.autograd.grad(slope.sum(), own), torch.autograd.grad(steep.sum(), exact)
    torch.testing.assert_close(curve.double(), bend, atol=10 * close["atol"], rtol=10 * close["rtol"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_stores_less_and_gives_the_same(dtype: torch.dtype) -> None:
    """Values and gradients are bit for bit autograd's, and only the input is stored for the backward pass."""
    h = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    g = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        found = SwiGLU.apply(h)
    assert kept == [h.data_ptr()]
    gate, up = h.chunk(2, -1)
    expected = F.silu(gate) * up
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(value, h, g)[0] for value in (found, expected)))


def test_swiglu_can_be_differentiated_twice() -> None:
    h = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double).requires_grad_()
    assert torch.autograd.gradgradcheck(SwiGLU.apply, (h,))


def thin(dtype: torch.dtype) -> list[torch.Tensor]:
    """y (2, 3, 5), x (2, 3, 4), A (2, 4), B (5, 2)."""
    chance = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5), (2, 3, 4), (2, 4), (5, 2))
    return [torch.randn(*shape, generator=chance, dtype=torch.double).to(dtype).requires_grad_() for shape in shapes]


def test_a_thin_product_is_added_in_place() -> None:
    """The sum, its gradients and second derivatives by finite differences, and no second array of y's size."""
    y, x, down, up = thin(torch.double)

    def added(y: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return AddThin.apply(y * 1, *rest)  # a copy, because a leaf that requires grad cannot be changed in place

    torch.testing.assert_close(added(y, x, down, up), y + x @ down.T @ up.T)
    assert torch.autograd.gradcheck(added, (y, x, down, up))
    assert torch.autograd.gradgradcheck(added, (y, x, down, up))
    mapped = y.detach() * 1
    with pytest.raises(RuntimeError, match="view size"):  # not silently added to a copy
        AddThin.apply(mapped.transpose(0, 1), x.detach().transpose(0, 1), down, up)
    assert AddThin.apply(mapped, x, down, up).data_ptr() == mapped.data_ptr()


def test_a_thin_product_is_rounded_once() -> None:
    """In bf16 the sum is closer to the exact one than a sum of two rounded products."""
    given = thin(torch.bfloat16)
    y, x, down, up = (t.detach() for t in given)
    exact = y.double() + x.double() @ down.double().T @ up.double().T
    apart = y + F.linear(F.linear(x, down), up)
    together = AddThin.apply(y.clone(), x, down, up)
    assert (together - exact).abs().mean() < (apart - exact).abs().mean()
