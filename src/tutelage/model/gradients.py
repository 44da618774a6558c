"""Functions of a block whose gradients are written by hand: they keep, or make on the way, less than autograd would.

Forwards they are torch's own operations; what they compute on the way back can be differentiated again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class FrozenRMSNorm(torch.autograd.Function):
    """RMSNorm whose gain learns nothing: it keeps x alone for the gradient; autograd keeps it in fp32 and thrice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, gain)
        ctx.eps = eps
        return F.rms_norm(x, (x.shape[-1],), gain, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """With s = 1/sqrt(mean x^2 + eps) and g the gradient times the gain: s g - s^3 x mean(g x)."""
        x, gain = (t.float() for t in ctx.saved_tensors)
        g = grads[0].float() * gain
        scale = (x.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
        return (scale * (g - x * (scale.square() * (g * x).mean(-1, keepdim=True)))).to(grads[0].dtype), None, None


def gated(h: Tensor) -> Tensor:
    """silu(gate) * up, of both side by side."""
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


class SwiGLU(torch.autograd.Function):
    """`gated`, which keeps its input alone: silu(gate) is made again for the gradient. The same numbers as without."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return gated(h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate, up), (g,) = ctx.saved_tensors[0].chunk(2, dim=-1), grads
        return torch.cat([_silu_backward(g * up, gate), g * F.silu(gate)], dim=-1)


def _silu_backward(g: Tensor, x: Tensor) -> Tensor:
    """torch's own, which cannot be differentiated again; where that is wanted (TRPO), written out."""
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(g, x)
    s = x.sigmoid()
    return g * s * (1 + x * (1 - s))


class AddThin(torch.autograd.Function):
    """y + x A^T B^T, added to y (..., d) itself: x (..., k), A (r, k), B (d, r), r small beside k and d.

    The thin product goes into y while it is made. Apart it is another array as large, written once and read once more.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        inside = rows(x) @ down.T
        ctx.save_for_backward(x, inside, down, up)
        ctx.mark_dirty(y)
        y.view(-1, y.shape[-1]).addmm_(inside, up.T)  # an error where y has gaps: a copy of it would be added to
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        x, inside, down, up = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again: not as a constant
            inside = rows(x) @ down.T
        g = rows(grads[0])
        narrow = g @ up
        x_grad = (narrow @ down).view_as(x) if ctx.needs_input_grad[1] else None
        return grads[0], x_grad, narrow.T @ rows(x), g.T @ inside


def rows(x: Tensor) -> Tensor:
    """(..., k) -> (N, k)."""
    return x.flatten(0, -2)
