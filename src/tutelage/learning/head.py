"""Log-probabilities of given tokens under a language model's head, and GPT's next-token loss.

    hidden (N, C), head (V, C), token ids (N,) -> log p (N,), or the mean of -log p

With a vocabulary of 49,152 the logits of one token take 200 kB. They are computed for a chunk of rows at a time, small
enough for the processor's cache, and their contribution to the gradient is computed while they are there.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Logits per chunk, 24 MiB in fp32. That is 128 rows for a vocabulary of 49,152, the fastest size measured (LOG.md).
LOGITS_AT_ONCE = 6 * 2**20
# Most rows per chunk of the next-token loss; matters for small vocabularies.
ROWS_AT_ONCE = 512


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T) at `ids`: logits (..., V), ids (...) -> (...), in fp32 for logits of any dtype."""
    logits = logits.float() / temperature
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def head_logprobs(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0, absent: Tensor | None = None
) -> Tensor:
    """log softmax(hidden weight^T / T) at `ids`: hidden (N, C), weight (V, C), ids (N,) -> (N,), in fp32.

    The token ids in `absent` (A,) are excluded from the softmax. If the head is trained, each chunk's logits are
    recomputed for the gradient instead of stored.
    """
    w, size = weight.to(hidden.dtype), rows_at_once(weight)
    if torch.is_grad_enabled() and not weight.requires_grad:
        return _FrozenHeadLogprobs.apply(hidden, w, ids, temperature, absent, size)

    def chunk_logprobs(h: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return token_logprobs(_without(F.linear(h, w), absent), y, temperature)
        return _softmax_terms(h, w, y, temperature, absent)[0]

    if len(ids) <= size:
        return chunk_logprobs(hidden, ids)
    chunks = zip(hidden.split(size), ids.split(size), strict=True)
    return torch.cat(
        [checkpoint(chunk_logprobs, h, y, use_reentrant=False, preserve_rng_state=False) for h, y in chunks]
    )


def rows_at_once(weight: Tensor) -> int:
    """Rows of logits per chunk for a head (V, C)."""
    return max(1, LOGITS_AT_ONCE // len(weight))


def _softmax_terms(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, absent: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log p (N,) of the ids; for the logits z, e^(z - max z) (N, V) and its row sums (N, 1).

    Computed in place: allocating a second array of logits takes longer than the arithmetic.
    """
    logits = _without(F.linear(hidden, weight).float(), absent)
    if temperature != 1.0:
        logits /= temperature
    highest, chosen = logits.amax(-1, keepdim=True), logits.gather(-1, ids[:, None])
    terms = logits.sub_(highest).exp_()
    sums = terms.sum(-1, keepdim=True)
    return (chosen - (sums.log() + highest)).squeeze(-1), terms, sums


class _FrozenHeadLogprobs(torch.autograd.Function):
    """`head_logprobs` for a frozen head.

    The gradient in row i of `hidden` is grad_i (W_y - sum_v p_v W_v) / T. The forward pass computes everything but
    grad_i, so no logits are stored.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, absent: Tensor | None, size: int
    ) -> Tensor:
        logprobs = torch.empty(len(ids), dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(hidden)
        for at in (slice(start, start + size) for start in range(0, len(ids), size)):
            logprobs[at], terms, sums = _softmax_terms(hidden[at], weight, ids[at], temperature, absent)
            slope[at] = F.embedding(ids[at], weight) - (terms.to(weight.dtype) @ weight) / sums
        ctx.save_for_backward(slope)
        ctx.temperature = temperature
        return logprobs

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
    """GPT's next-token loss (Radford et al. 2018, eq. 1) as a mean: -log p(target), summed and divided by `total`.

    hidden (N, C): the hidden states that predict the targets; head_weight (V, C); targets (N,) -> a scalar in fp32.
    `total` is N by default. Gradients are computed in hidden's precision. Tokens in `absent` (A,) must not be targets:
    they are excluded from the softmax, and their rows get no gradient.
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
    """Cross entropy of a trained head; the forward pass computes the gradients too, chunk by chunk.

    The full (N, V) logits never exist. For V = 4,096 this saves 64 MiB per 4,096 tokens; on a CPU, allocating that
    memory takes longer than the matrix products.
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
            # Softmax minus one-hot: the gradient of the loss in the logits.
            error = logprobs.exp_()
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
    """The logits with those of the absent tokens set to -inf, in place."""
    return logits if absent is None else logits.index_fill_(-1, absent, -torch.inf)
