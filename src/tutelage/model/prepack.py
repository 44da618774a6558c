"""Packed weights: copies in the memory layout of the CPU's bf16 kernels, for inference.

    prepack(model, head): matrices get an attribute `packed`;  unpack(model) removes it
    product(x, weight, bias) = x W^T + bias, with the packed copy if there is one
    with batch_invariant(): a row of a product has the same bits whatever the number of rows

Do not change a matrix while it is packed: its products would still use the old copy.
A product of a few rows, as in a decoding step, spends half of its time on rearranging the weights. With packed weights
it takes half as long and gives the same numbers bit for bit (LOG.md). The operators are oneDNN's and private to torch;
without them nothing is packed, and products run as usual.

On CPUs with AMX, oneDNN chooses how to split a bf16 sum by the number of rows and of threads. Up to 3 numbers in 10,000
then differ in their last digit between, say, 16 and 64 rows. `batch_invariant` runs longer products there in parts of
at most ROWS rows. oneDNN never splits sums of so few rows if each thread has AMX_COLUMNS columns of the result (oneDNN
3.12; measured for 1 to 12 threads). With fewer columns, each part is padded to exactly ROWS rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 32  # batch size the layout is optimised for, that of decoding; other sizes work, too

AMX_COLUMNS, AMX_SUM = 96, 32  # per thread; shorter sums of a few rows are computed without AMX

_invariant: ContextVar[bool] = ContextVar("batch_invariant", default=False)  # of this thread alone


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Within this, bf16 products on CPUs with AMX give each row the same bits whatever the number of rows.

    Other machines and precisions compute exactly as without it. The engine uses it; training and the sampler do not.
    """
    token = _invariant.set(has_amx())
    try:
        yield
    finally:
        _invariant.reset(token)


def has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices with AMX."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., k) times weight (d, k) transposed, plus bias (d,) -> (..., d), in the precision of x."""
    if _invariant.get() and x.dtype == torch.bfloat16 and x.device.type == "cpu":
        return _product_in_parts(x, weight, bias)
    return _product(x, weight, bias)


def _product_in_parts(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    d, k = weight.shape
    if len(rows) > 1 and k >= AMX_SUM and d >= AMX_COLUMNS * torch.get_num_threads():
        parts = rows.chunk(-(-len(rows) // ROWS))  # of similar length, as a single row is summed differently
    else:
        parts = F.pad(rows, (0, 0, 0, -len(rows) % ROWS)).split(ROWS)
    products = [_product(part, weight, bias) for part in parts]
    y = products[0] if len(products) == 1 else torch.cat(products)
    return y[: len(rows)].view(*x.shape[:-1], d)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    packed = getattr(weight, "packed", None)
    bias = None if bias is None else bias.to(x.dtype)
    if packed is None or x.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return F.linear(x, weight.to(x.dtype), bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def prepack(model: nn.Module, head: Tensor) -> None:
    """Pack those of the linear maps and the head that are frozen, in bf16 and on the CPU.

    The copy is stored on the weight itself, so matrices that several models share are packed once.
    """
    if not can_pack():
        return
    for weight in (*(module.weight for module in model.modules() if isinstance(module, nn.Linear)), head):
        fits = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not weight.requires_grad
        if fits and not hasattr(weight, "packed"):
            weight.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)  # type: ignore[attr-defined]


def unpack(model: nn.Module) -> None:
    """Free the packed copies, which take as much memory as the model itself. Training does not use them."""
    for weight in model.parameters():
        if hasattr(weight, "packed"):
            del weight.packed


def can_pack() -> bool:
    """True if this build of torch has the operators and this CPU runs them in bf16."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
