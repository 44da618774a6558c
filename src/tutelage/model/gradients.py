"""Autograd functions of a block with hand-written gradients, which store or allocate less than autograd would.

The forward passes are torch's own operations. The backward passes can be differentiated again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class FrozenRMSNorm(torch.autograd.Function):
    """RMSNorm with a frozen gain. It stores only x for the gradient; autograd stores it three times, in fp32."""

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
    """silu(gate) * up, where h (..., 2 d) is gate and up side by side -> (..., d)."""
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


class SwiGLU(torch.autograd.Function):
    """`gated`, storing only its input; silu(gate) is recomputed for the gradient. The numbers are autograd's."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return gated(h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate, up), (g,) = ctx.saved_tensors[0].chunk(2, dim=-1), grads
        return torch.cat([_silu_backward(g * up, gate), g * F.silu(gate)], dim=-1)


def _silu_backward(g: Tensor, x: Tensor) -> Tensor:
    """Gradient of silu(x), given that of its output."""
    # torch's own function is not differentiable, so the formula is written out for second derivatives (TRPO).
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(g, x)
    s = x.sigmoid()
    return g * s * (1 + x * (1 - s))


class AddThin(torch.autograd.Function):
    """y + x A^T B^T, added to y (..., d) in place: x (..., k), A (r, k), B (d, r), with r much smaller than k and d.

    Accumulating the low-rank product into y avoids a second array of y's size, which would be written and read again.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        inside = rows(x) @ down.T
        ctx.save_for_backward(x, inside, down, up)
        ctx.mark_dirty(y)
        # `view`, not `reshape`: a y that is not contiguous must be an error, because a copy would take the sum.
        y.view(-1, y.shape[-1]).addmm_(inside, up.T)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        x, inside, down, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            # For second derivatives `inside` must be a function of x and A, not a stored constant.
            inside = rows(x) @ down.T
        g = rows(grads[0])
        narrow = g @ up
        x_grad = (narrow @ down).view_as(x) if ctx.needs_input_grad[1] else None
        return grads[0], x_grad, narrow.T @ rows(x), g.T @ inside


def rows(x: Tensor) -> Tensor:
    """Flatten all axes but the last: (..., k) -> (N, k)."""
    return x.flatten(0, -2)
