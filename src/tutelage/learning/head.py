"""What a language model's head says of given tokens: log-probabilities, and GPT's next-token loss.

    hidden (N, C), head (V, C), token ids (N,) -> log p (N,), or -log p as a mean

Of a vocabulary of 49,152 each token takes 200 kB of logits. They are made for some rows at a time, few enough to
stay in the processor's cache, and what the gradient will need of them is computed while they are there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 6 * 2**20  # numbers, 24 MiB of fp32: 128 rows of 49,152 tokens, the fastest where measured (LOG.md)
ROWS_AT_ONCE = 512  # of the next-token loss, where the vocabulary is small


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T) at `ids`: logits (..., V), ids (...) -> (...), in fp32 whatever the logits are."""
    logits = logits.float() / temperature
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def head_logprobs(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0, absent: Tensor | None = None
) -> Tensor:
    """log softmax(hidden weight^T / T) at `ids`: hidden (N, C), weight (V, C), ids (N,) -> (N,), in fp32.

    absent (A,) is no part of the vocabulary. Where the head learns, the logits of a piece are made again for the
    gradient instead of being kept.
    """
    w, size = weight.to(hidden.dtype), rows_at_once(weight)
    if torch.is_grad_enabled() and not weight.requires_grad:
        return _FrozenHeadLogprobs.apply(hidden, w, ids, temperature, absent, size)

    def piece(h: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return token_logprobs(_without(F.linear(h, w), absent), y, temperature)
        return _softmax_terms(h, w, y, temperature, absent)[0]

    if len(ids) <= size:
        return piece(hidden, ids)
    pieces = zip(hidden.split(size), ids.split(size), strict=True)
    return torch.cat([checkpoint(piece, *both, use_reentrant=False, preserve_rng_state=False) for both in pieces])


def rows_at_once(weight: Tensor) -> int:
    """How many rows of logits of a head (V, C) to make in one piece."""
    return max(1, LOGITS_AT_ONCE // len(weight))


def _softmax_terms(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, absent: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log p (N,) of the ids; e^(z - max z) (N, V) of the logits z, and its sums (N, 1).

    In place: a second array of logits costs more, in fresh pages of memory, than what is computed in it.
    """
    logits = _without(F.linear(hidden, weight).float(), absent)
    if temperature != 1.0:
        logits /= temperature
    highest, given = logits.amax(-1, keepdim=True), logits.gather(-1, ids[:, None])
    terms = logits.sub_(highest).exp_()
    sums = terms.sum(-1, keepdim=True)
    return (given - (sums.log() + highest)).squeeze(-1), terms, sums


class _FrozenHeadLogprobs(torch.autograd.Function):
    """`head_logprobs` of a head that learns nothing.

    The gradient in row i of `hidden` is grad_i (W_y - sum_v p_v W_v) / T, of which all but grad_i is known already.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, absent: Tensor | None, size: int
    ) -> Tensor:
        found = torch.empty(len(ids), dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(hidden)
        for at in (slice(start, start + size) for start in range(0, len(ids), size)):
            found[at], terms, sums = _softmax_terms(hidden[at], weight, ids[at], temperature, absent)
            slope[at] = F.embedding(ids[at], weight) - (terms.to(weight.dtype) @ weight) / sums
        ctx.save_for_backward(slope)
        ctx.temperature = temperature
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        gradient = slope * (grads[0] / ctx.temperature)[:, None]
        return gradient.to(slope.dtype), None, None, None, None, None


def next_token_loss(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    total: Tensor | float | None = None,
    absent: Tensor | None = None,
) -> Tensor:
    """-log p(target), summed over the N rows and divided by `total` (default N): GPT's eq. 1 as a mean.

    hidden (N, C) states just before their targets, head_weight (V, C), targets (N,). Gradients in hidden's precision.
    absent (A,) tokens that this text cannot hold and no target is: the vocabulary without them, their rows unmoved.
    """
    if hidden.shape[0] == 0:
        return (hidden.sum() + 0.0 * head_weight.sum()).float()
    if torch.is_grad_enabled() and head_weight.requires_grad:
        size = min(ROWS_AT_ONCE, rows_at_once(head_weight))
        summed = _LinearCrossEntropy.apply(hidden, head_weight, targets, absent, size)
    else:
        summed = -head_logprobs(hidden, head_weight, targets, absent=absent).sum()
    return summed / (hidden.shape[0] if total is None else total)


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross entropy of a head that learns, with gradients made chunk by chunk while the logits are at hand.

    The whole (N, V) logits never exist: for V = 4,096 that is 64 MiB less per 4,096 tokens, and on a CPU the fresh
    pages alone cost more time than the products.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, absent: Tensor | None, size: int) -> Tensor:
        w = weight.to(hidden.dtype)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for at in (slice(start, start + size) for start in range(0, len(targets), size)):
            h, y = hidden[at], targets[at]
            logits = _without(F.linear(h, w).float(), absent)
            logprobs = logits.sub_(logits.logsumexp(-1, keepdim=True))
            loss -= logprobs.gather(-1, y[:, None]).sum()
            error = logprobs.exp_()  # softmax minus one-hot: the gradient of the loss in the logits
            error[torch.arange(len(y), device=y.device), y] -= 1.0
            error = error.to(hidden.dtype)
            hidden_grad[at] = error @ w
            weight_grad += error.T @ h
        ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            (hidden_grad * grads[0]).to(hidden_grad.dtype),
            (weight_grad * grads[0]).to(weight_grad.dtype),
            None,
            None,
            None,
        )


def _without(logits: Tensor, absent: Tensor | None) -> Tensor:
    return logits if absent is None else logits.index_fill_(-1, absent, -torch.inf)
