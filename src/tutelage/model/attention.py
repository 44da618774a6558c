"""Softmax attention by the fastest kernel for the device and shape; all kernels compute the same function.

    q (B, H, L, D), k and v (B, kv_heads, S, D), mask (B or 1, 1, L, S), True = may attend -> (B, H, L, D)

Without a mask attention is causal, and the last query is at the position of the last key. Query heads that share a key
head become rows of one product, so keys and values are never repeated. On a CPU torch's fused kernel takes three times
as long as plain matrix products for bf16 training windows, and for one new token per row (LOG.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Largest L x S for the plain path. Beyond it, the memory for its score matrices outweighs the time saved.
PLAIN_SCORES = 1024 * 1024


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with the kernel chosen by device, dtype and shape; arguments as in the module docstring."""
    L, S = q.shape[2], k.shape[2]
    half_on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if L == 1 or (half_on_cpu and L * S <= PLAIN_SCORES):
        return attend_plainly(q, k, v, mask)
    if mask is None and L != S:
        mask = causal(L, S, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )


def attend_plainly(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as plain matrix products: softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, eq. 1)."""
    B, H, L, D = q.shape
    kv_heads, S = k.shape[1], k.shape[2]
    rows = H // kv_heads * L  # queries that share one key head
    queries, keys = q.reshape(B * kv_heads, rows, D), k.reshape(B * kv_heads, S, D)
    if L == 1:
        # The keys are a slice of the cache. bmm copies a slice unless it is the left factor; this halves the time.
        scores = torch.bmm(keys, queries.mT).mT * D**-0.5
        if mask is not None:
            scores = scores.view(B, kv_heads, rows, S).masked_fill_(~mask, -1e9).view(B * kv_heads, rows, S)
    else:
        mask = causal(L, S, q.device) if mask is None else mask
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -1e9)
        bias = bias.expand(B, kv_heads, L, S).repeat(1, 1, H // kv_heads, 1).view(B * kv_heads, rows, S)
        scores = torch.baddbmm(bias, queries, keys.mT, alpha=D**-0.5)
    return torch.bmm(scores.softmax(-1), v.reshape(B * kv_heads, S, D)).view(B, H, L, D)


def causal(L: int, S: int, device: torch.device) -> Tensor:
    """(1, 1, L, S), True = may attend: query i is at the position of key S - L + i and sees the keys up to it."""
    return torch.ones(L, S, dtype=torch.bool, device=device).tril(S - L)[None, None]
