"""Weights laid out once as the CPU's bf16 kernels want them, for a model that only runs forwards.

    prepack(model, head): matrices get `packed`;  unpack(model) takes them away
    product(x, weight, bias) = x W^T + bias, by the packed one if there is one

What is packed is a copy: a packed matrix must not be changed, as its products would go on with the old one.
A product of a few rows, one step of decoding, spends half of its time on laying the weights out anew: packed, it takes
half as long, and its numbers are the same bit for bit (LOG.md). The operators are oneDNN's, private to torch: where
they are missing nothing is packed, and everything runs as before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 32  # a batch of decoding: what the layout is chosen for; any other number of rows works


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., k) -> (..., d) by weight (d, k), in the precision of x."""
    packed = getattr(weight, "packed", None)
    bias = None if bias is None else bias.to(x.dtype)
    if packed is None or x.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return F.linear(x, weight.to(x.dtype), bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def prepack(model: nn.Module, head: Tensor) -> None:
    """Pack the linear maps and the head, where they are frozen, in bf16 and on the CPU.

    A packed matrix stays so for as long as it exists: those that models share are packed once.
    """
    if not can_pack():
        return
    for weight in (*(module.weight for module in model.modules() if isinstance(module, nn.Linear)), head):
        fits = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not weight.requires_grad
        if fits and not hasattr(weight, "packed"):
            weight.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)  # type: ignore[attr-defined]


def unpack(model: nn.Module) -> None:
    """Give the copies' memory back, a second model's: for learning, which has no use for them."""
    for weight in model.parameters():
        if hasattr(weight, "packed"):
            del weight.packed


def can_pack() -> bool:
    """Whether this build of torch has the operators and this CPU runs them in bf16."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
