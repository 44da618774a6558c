"""Packed weights: copies in the memory layout of the CPU's bf16 kernels, for inference.

    prepack(model, head): matrices get an attribute `packed`;  unpack(model) removes it
    product(x, weight, bias) = x W^T + bias, with the packed copy if there is one

Do not change a matrix while it is packed: its products would still use the old copy.
A product of a few rows, as in a decoding step, spends half of its time on rearranging the weights. With packed weights
it takes half as long and gives the same numbers bit for bit (LOG.md). The operators are oneDNN's and private to torch;
without them nothing is packed, and products run as usual.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 32  # batch size the layout is optimised for, that of decoding; other sizes work, too


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., k) times weight (d, k) transposed, plus bias (d,) -> (..., d), in the precision of x."""
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
