"""Packed weights: the same products bit for bit, and only for frozen weights."""

import pytest
import torch
import torch.nn.functional as F

from tutelage.model.gpt import GPT, Linear
from tutelage.model.prepack import batch_invariant, can_pack, has_amx, prepack, product, unpack

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch or CPU has no packed bf16 products")


def packed_linear(columns: int, rows: int, bias: bool) -> Linear:
    linear = Linear(columns, rows, bias=bias)
    for parameter in linear.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    linear = linear.to(torch.bfloat16).requires_grad_(False)
    prepack(linear, linear.weight)
    assert hasattr(linear.weight, "packed")
    return linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(64, 96), (576, 960), (1536, 576), (130, 70)])
def test_a_packed_product_is_the_plain_one_bit_for_bit(shape: tuple[int, int], bias: bool) -> None:
    linear = packed_linear(*shape, bias)
    for rows in (1, 3, 16, 32, 77):
        x = torch.randn(2, rows, shape[0], generator=torch.Generator().manual_seed(rows)).bfloat16()
        with torch.no_grad():
            assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))


def test_with_gradients_the_plain_product_is_used() -> None:
    """The packed product has no gradient, so the layers before it would not be trained."""
    linear = packed_linear(32, 48, bias=True)
    x = torch.randn(4, 32).bfloat16().requires_grad_()
    linear(x).float().sum().backward()
    expected = linear.weight.float().sum(0)
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0].float(), expected, atol=2e-2, rtol=2e-2)


def test_another_precision_uses_the_plain_product() -> None:
    linear = packed_linear(32, 48, bias=False)
    x = torch.randn(4, 32)
    with torch.no_grad():
        torch.testing.assert_close(product(x, linear.weight, None), x @ linear.weight.float().T)


def test_trained_weights_are_never_packed(make_gpt: object) -> None:
    """Training would change the weights but not their packed copies."""
    model: GPT = make_gpt().to(torch.bfloat16)  # type: ignore[operator]
    prepack(model, model.head_weight)
    assert not any(hasattr(p, "packed") for p in model.parameters())
    prepack(model.requires_grad_(False), model.head_weight)
    packed = {name for name, p in model.named_parameters() if hasattr(p, "packed")}
    assert packed == {name for name, p in model.named_parameters() if p.ndim == 2 and "positions" not in name}


def test_unpacking_removes_the_copy_and_changes_no_number() -> None:
    linear = packed_linear(576, 96, bias=True)
    x = torch.randn(3, 576, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        before = linear(x)
        unpack(linear)
        assert not hasattr(linear.weight, "packed")
        assert torch.equal(linear(x), before)


@pytest.mark.parametrize("shape", [(576, 960), (1536, 576), (1536, 64), (130, 70), (8, 576), (576, 8)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_invariant_product_is_the_product(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], bias: bool
) -> None:
    monkeypatch.setattr("tutelage.model.prepack.has_amx", lambda: True)
    linear = packed_linear(*shape, bias)
    for rows in (1, 2, 32, 33, 77):
        x = torch.randn(2, rows, shape[0], generator=torch.Generator().manual_seed(rows)).bfloat16()
        with torch.no_grad(), batch_invariant():
            torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))


@pytest.mark.skipif(not has_amx(), reason="this CPU has no AMX")
@pytest.mark.parametrize("shape", [(576, 960), (1536, 576), (1536, 64), (130, 70), (8, 576), (576, 8)])
@pytest.mark.parametrize("packed", [False, True])
def test_with_amx_a_row_has_the_same_bits_among_any_number(shape: tuple[int, int], packed: bool) -> None:
    linear = packed_linear(*shape, bias=False)
    if not packed:
        unpack(linear)
    x = torch.randn(160, shape[0], generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad(), batch_invariant():
        whole = linear(x)
        for rows in (1, 2, 3, 16, 31, 32, 33, 37, 65, 128):
            parts = torch.cat([linear(part) for part in x.split(rows)])
            assert torch.equal(parts, whole), rows
