"""Prompts of many lengths through a model, like lengths together, into one cache that they go on from side by side.

    prefill(model, prompts, room) -> Prefilled(cache, hidden, low);  last_hidden(...) for each token after that

In the cache prompts end in the same column, short ones stand behind padding. In the passes that fill it they are padded
to their own like only: side by side with the longest, 30 to 42 % of what is computed was padding (LOG.md).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.model.gpt import GPT
from tutelage.model.kv_cache import KVCache

# How many more tokens take as long as one more pass. 32 to 256 were equal on a CPU within their noise (LOG.md); on a
# GPU a pass costs more, and few groups are the better guess.
PASS_COST = 256


class Prefilled(NamedTuple):
    """P prompts that a model has read, the longest of W tokens."""

    cache: KVCache  # of length W, the prompts at its right
    hidden: Tensor  # (P, C) at each prompt's last token
    low: Tensor | None  # (P, W, C) as it leaves the lowest blocks, left-padded; if it was wanted


def prefill(model: GPT, prompts: Sequence[Sequence[int]], room: int, layers: int = 0) -> Prefilled:
    """Read the prompts, leaving room for so many tokens more; `low` is what leaves the lowest `layers` blocks."""
    lengths = [len(prompt) for prompt in prompts]
    width, weight = max(lengths), model.embedding.weight
    cache, groups = empty_cache(model, len(prompts), width + room), like_lengths(lengths)
    if len(groups) == 1:
        return Prefilled(cache, *read(model, prompts, cache, layers))
    cache.pad(width)
    hidden = torch.empty(len(prompts), model.config.width, dtype=model.compute_dtype, device=weight.device)
    low = hidden.new_zeros(len(prompts), width, model.config.width) if layers else None
    for rows in groups:
        some = [prompts[row] for row in rows]
        part = empty_cache(model, len(some), max(map(len, some)))
        chosen = torch.tensor(rows, device=weight.device)
        hidden[chosen], under = read(model, some, part, layers)
        cache.place(chosen, part)
        if low is not None and under is not None:
            low[chosen, width - part.length :] = under
    return Prefilled(cache, hidden, low)


def read(model: GPT, prompts: Sequence[Sequence[int]], cache: KVCache, layers: int) -> tuple[Tensor, Tensor | None]:
    """`last_hidden` of prompts, left-padded to the longest of them."""
    width, device = max(map(len, prompts)), model.embedding.weight.device
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    pads = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
    place = torch.arange(width, device=device)
    positions, mask = (place - pads[:, None]).clamp(min=0), None
    if pads.any():
        look = (place <= place[:, None]) & (place >= pads[:, None])[:, None, :]
        look |= torch.eye(width, dtype=torch.bool, device=device)  # a pad sees itself: no empty softmax
        mask = look[:, None]
    return last_hidden(model, ids, positions, mask, cache, layers)


def last_hidden(
    model: GPT, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache, layers: int
) -> tuple[Tensor, Tensor | None]:
    """(B, C) at the last column of ids (B, L), and (B, L, C) as it leaves the lowest blocks, if there are any."""
    stream = model.lower(ids, layers, positions, mask, cache) if layers else None
    return model.trunk(ids, positions, mask, cache, stream, first=ids.shape[1] - 1)[:, -1], stream and stream.x


def empty_cache(model: GPT, rows: int, size: int) -> KVCache:
    c = model.config
    return KVCache(
        bands=c.bands, batch=rows, kv_heads=c.kv_heads, size=size, head_width=c.head_width, dtype=model.compute_dtype,
        device=model.embedding.weight.device,
    )  # fmt: skip


def like_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Which rows to run together: the groups that take fewest tokens in all, padding and PASS_COST counted."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best: list[tuple[int, int]] = [(0, 0)]  # of the first n rows: what they take, and where their last group begins
    for end, longest in enumerate((lengths[row] for row in order), start=1):
        best.append(min((best[at][0] + longest * (end - at) + PASS_COST, at) for at in range(end)))
    groups, end = [], len(order)
    while end:
        groups.append(order[best[end][1] : end])
        end = best[end][1]
    return groups
