"""Prefill: run prompts of different lengths through a model and leave them side by side in one KV cache.

    prefill(model, prompts, room) -> Prefilled(cache, hidden, residual);  last_hidden(...) for each token after that

In the cache all prompts end in the same column; shorter ones are left-padded. The forward passes that fill it run
prompts of similar length together and pad only within such a group. When every prompt was padded to the longest one,
30 to 42 % of the computation was padding (LOG.md).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.model.gpt import GPT
from tutelage.model.kv_cache import KVCache

# Cost of one more forward pass, in tokens. On a CPU 32 to 256 were equal within noise (LOG.md). The largest of these
# makes the fewest groups, which suits a GPU, where a pass costs more.
PASS_COST = 256


class Prefilled(NamedTuple):
    """P prompts that the model has processed, the longest of W tokens."""

    cache: KVCache  # of length W, the prompts at its right end
    hidden: Tensor  # (P, C) at each prompt's last token
    residual: Tensor | None  # (P, W, C) residual stream after the lowest blocks, left-padded; None if not requested


def prefill(model: GPT, prompts: Sequence[Sequence[int]], room: int, layers: int = 0) -> Prefilled:
    """Run the prompts and leave room in the cache for `room` more tokens.

    If `layers` is positive, the result also holds the residual stream after that many of the lowest blocks.
    """
    lengths = [len(prompt) for prompt in prompts]
    width, device = max(lengths), model.embedding.weight.device
    cache, groups = empty_cache(model, len(prompts), width + room), group_by_length(lengths)
    if len(groups) == 1:
        return Prefilled(cache, *run_padded(model, prompts, cache, layers))
    cache.pad(width)
    hidden = torch.empty(len(prompts), model.config.width, dtype=model.compute_dtype, device=device)
    residual = hidden.new_zeros(len(prompts), width, model.config.width) if layers else None
    for rows in groups:
        group = [prompts[row] for row in rows]
        group_cache = empty_cache(model, len(group), max(map(len, group)))
        chosen = torch.tensor(rows, device=device)
        hidden[chosen], group_residual = run_padded(model, group, group_cache, layers)
        cache.place(chosen, group_cache)
        if residual is not None and group_residual is not None:
            residual[chosen, width - group_cache.length :] = group_residual
    return Prefilled(cache, hidden, residual)


def run_padded(
    model: GPT, prompts: Sequence[Sequence[int]], cache: KVCache, layers: int
) -> tuple[Tensor, Tensor | None]:
    """`last_hidden` of the prompts, left-padded to the longest of them."""
    width, device = max(map(len, prompts)), model.embedding.weight.device
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    pads = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
    columns = torch.arange(width, device=device)
    positions, mask = (columns - pads[:, None]).clamp(min=0), None
    if pads.any():
        visible = (columns <= columns[:, None]) & (columns >= pads[:, None])[:, None, :]
        visible |= torch.eye(
            width, dtype=torch.bool, device=device
        )  # a pad attends to itself, so that its softmax is not empty
        mask = visible[:, None]
    return last_hidden(model, ids, positions, mask, cache, layers)


def last_hidden(
    model: GPT, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache, layers: int
) -> tuple[Tensor, Tensor | None]:
    """Run ids (B, L). Returns hidden states (B, C) at the last column and the residual stream (B, L, C) after the
    lowest `layers` blocks, or None instead of the stream if `layers` is 0.
    """
    stream = model.lower(ids, layers, positions, mask, cache) if layers else None
    return model.trunk(ids, positions, mask, cache, stream, first=ids.shape[1] - 1)[:, -1], stream and stream.x


def empty_cache(model: GPT, rows: int, size: int) -> KVCache:
    """A KV cache for `rows` texts of up to `size` tokens."""
    c = model.config
    return KVCache(
        bands=c.bands,
        batch=rows,
        kv_heads=c.kv_heads,
        size=size,
        head_width=c.head_width,
        dtype=model.compute_dtype,
        device=model.embedding.weight.device,
    )


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers, grouped so that padded tokens plus PASS_COST per group are least (dynamic programming)."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best: list[tuple[int, int]] = [(0, 0)]  # for the first n rows: the least cost, and where the last group begins
    for end, longest in enumerate((lengths[row] for row in order), start=1):
        best.append(min((best[at][0] + longest * (end - at) + PASS_COST, at) for at in range(end)))
    groups, end = [], len(order)
    while end:
        groups.append(order[best[end][1] : end])
        end = best[end][1]
    return groups
