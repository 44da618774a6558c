"""Keys and values of requests that come and go: one slot each, and one forward pass for whatever they need next.

    plan(singles, pieces) -> trunk(ids (1, N), positions (1, N), cache=slots) -> hidden (1, N, C)

The N tokens of a pass stand in one row: first those of requests that need one token (decoding), then pieces of
prompts. Linear maps see one matrix; only attention, here, knows whose token is whose. Neighbouring slots of like length
look at their keys in one product (`neighbours`); a piece of a prompt looks at its own slot. Both take the same steps in
the same order, so that a token's numbers depend neither on how its prompt was cut into pieces nor on who else is in the
pass: bit for bit where the products are so (bf16 on CPU; LOG.md).

A slot is stored in blocks, the first blocks of all slots side by side, then the second ones: what neighbours look at is
then one dense tensor per block. A product over a part of something larger copies it first (half of the time).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.model.config import GPTConfig

BLOCK = 128  # tokens of the first blocks; later ones are up to half as long as all before them
PRODUCT = 300  # one more product costs about as much as looking at so many keys

SavedKV = list[Tensor]  # a slot's first tokens by block: (layers, 2, kv_heads, tokens, D)


@dataclass(frozen=True)
class Write:
    """Tokens of a pass whose keys and values go to one block."""

    block: int
    tokens: Tensor  # which of the N
    slots: Tensor
    at: Tensor  # where in the block


@dataclass(frozen=True)
class AttentionGroup:
    """Some tokens of a pass and the slots at whose keys they look together: one token each, or a piece at one slot."""

    tokens: slice
    slots: slice
    blocks: int  # how many of each slot are looked at
    near: Tensor  # (slots, 1, 1, L, keys): 0 where a key may be seen, -1e9 where it must not
    banded: Tensor  # the same for banded layers


class SlotCache:
    """K and V of every layer for `count` requests of up to `context` tokens: a `Cache` for `GPT.trunk`.

    Banded layers keep everything, too: a prefix may be gone back to.
    """

    length = 0  # each request has its own, in the plan

    def __init__(self, config: GPTConfig, count: int, context: int, dtype: torch.dtype, device: torch.device):
        self.config, self.device = config, device
        self.groups, self.scale = config.heads // config.kv_heads, config.head_width**-0.5
        self.starts = block_starts(context)
        sizes = np.diff([*self.starts, context])
        shapes = [(config.layers, 2, count, config.kv_heads, int(size), config.head_width) for size in sizes]
        self.kv = [_zeros(shape, dtype, device) for shape in shapes]
        self.tokens = 0  # how many are planned
        self.writes: list[Write] = []
        self.glances: list[AttentionGroup] = []

    def blocks(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return int(np.searchsorted(self.starts, tokens))

    def nbytes(self, tokens: int) -> int:
        """What `take` takes."""
        return sum(part.nbytes for part in self._first(0, tokens))

    def take(self, slot: int, tokens: int) -> SavedKV:
        """A copy of a slot's first tokens."""
        return [part.clone() for part in self._first(slot, tokens)]

    def put(self, slot: int, kept: SavedKV, tokens: int) -> None:
        for part, block in zip(self._first(slot, tokens), kept, strict=False):
            part.copy_(block[:, :, :, : part.shape[3]])

    def _first(self, slot: int, tokens: int) -> SavedKV:
        """A slot's first tokens, block by block, where they stand."""
        parts = zip(self.kv[: self.blocks(tokens)], self.starts, strict=False)
        return [kv[:, :, slot, :, : tokens - start] for kv, start in parts]

    def copy(self, source: int, target: int, tokens: int) -> None:
        self.put(target, [kv[:, :, source] for kv in self.kv], tokens)

    def plan(self, singles: Sequence[tuple[int, int]], pieces: Sequence[tuple[int, int, int]]) -> None:
        """The next pass: (slot, position) of single tokens by ascending slot, then (slot, start, count) of pieces.

        Tokens of the pass beyond these belong to nobody: nothing is kept of them, and they see nothing.
        """
        slots, ends = [slot for slot, _ in singles], [at + 1 for _, at in singles]
        whose = np.repeat([*slots, *(slot for slot, _, _ in pieces)], [*(1 for _ in slots), *(n for _, _, n in pieces)])
        at = np.concatenate([np.array(ends, dtype=np.int64) - 1, *(np.arange(s, s + n) for _, s, n in pieces)])
        self.tokens = len(at)
        self.writes = self._writes(whose, at)
        runs = [(first, last + 1) for first, last in neighbours(slots, ends)]
        self.glances = [self._group(slice(*run), slots[run[0]], at[slice(*run), None]) for run in runs]
        token = len(slots)
        for slot, _, count in pieces:
            self.glances.append(self._group(slice(token, token + count), slot, at[None, token : token + count]))
            token += count

    def _writes(self, slots: np.ndarray, at: np.ndarray) -> list[Write]:
        block = np.searchsorted(self.starts, at, side="right") - 1
        writes = []
        for number in np.unique(block):
            tokens = (block == number).nonzero()[0]
            where = (tokens, slots[tokens], at[tokens] - self.starts[number])
            writes.append(Write(int(number), *(torch.from_numpy(x).to(self.device) for x in where)))
        return writes

    def _group(self, tokens: slice, slot: int, at: np.ndarray) -> AttentionGroup:
        """at (slots, L): the positions of the tokens in each slot, from `slot` on."""
        blocks = self.blocks(int(at.max()) + 1)
        keys = torch.arange(sum(kv.shape[4] for kv in self.kv[:blocks]), device=self.device)
        back = (torch.from_numpy(at).to(self.device)[..., None] - keys)[:, None, None]
        hidden, band = back < 0, self.config.band
        near, banded = (
            torch.zeros(back.shape, dtype=self.kv[0].dtype, device=self.device).masked_fill_(unseen, -1e9)
            for unseen in (hidden, hidden | (back >= band) if band else hidden)
        )
        return AttentionGroup(tokens, slice(slot, slot + len(at)), blocks, near, banded)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q (1, H, N, D), k and v (1, kv_heads, N, D), what may be seen as planned -> (1, H, N, D)."""
        new = torch.stack([k[0].transpose(0, 1), v[0].transpose(0, 1)], 1)  # (N, 2, kv_heads, D)
        for write in self.writes:
            some = new[: self.tokens] if len(self.writes) == 1 else new[write.tokens]
            self.kv[write.block][layer, :, write.slots, :, write.at] = some
        queries = q[0].transpose(0, 1) * self.scale  # (N, H, D)
        seen = [self._look(layer, group, queries[group.tokens]) for group in self.glances]
        return torch.cat([*seen, torch.zeros_like(queries[self.tokens :])]).transpose(0, 1)[None]

    def _look(self, layer: int, group: AttentionGroup, queries: Tensor) -> Tensor:
        """(tokens, H, D) -> (tokens, H, D)."""
        count, L = group.near.shape[0], group.near.shape[3]
        kv_heads, D = self.config.kv_heads, self.config.head_width
        keys, values = (
            [kv[layer, which, group.slots].view(count * kv_heads, -1, D) for kv in self.kv[: group.blocks]]
            for which in range(2)
        )
        queries = queries.view(count, L, kv_heads, self.groups, D).permute(0, 2, 3, 1, 4)
        queries = queries.reshape(count * kv_heads, self.groups * L, D)
        scores = torch.cat([torch.bmm(queries, block.mT) for block in keys], -1)
        bias = group.banded if self.config.bands[layer] else group.near
        scores.view(count, kv_heads, self.groups, L, -1).add_(bias)
        weights = scores.softmax(-1).split([block.shape[1] for block in values], -1)
        seen = torch.bmm(weights[0], values[0])
        if len(values) > 1:  # sums in fp32, in the order of the text: blocks behind a row's end add exact zeros
            total = seen.float()
            for some, block in zip(weights[1:], values[1:], strict=True):
                total += torch.bmm(some, block)
            seen = total.to(seen.dtype)
        seen = seen.view(count, kv_heads, self.groups, L, D).permute(0, 3, 1, 2, 4)
        return seen.reshape(count * L, kv_heads * self.groups, D)

    def banded(self, tokens: int, mask: Tensor | None) -> None:
        """Which keys are too far is in the plan."""

    def advance(self, tokens: int) -> None:
        """Each request counts its own."""


def block_starts(context: int) -> list[int]:
    """Where the blocks of a slot begin."""
    starts = [0]
    while (end := starts[-1] + max(BLOCK, starts[-1] // 2 // BLOCK * BLOCK)) < context:
        starts.append(end)
    return starts


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU memory that is taken page by page when it is written: most slots stay shorter than they may be."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.zeros(int(np.prod(shape)) * size, dtype=np.uint8)).view(dtype).view(*shape)


def bytes_per_token(config: GPTConfig, dtype: torch.dtype) -> int:
    """K and V of one token in all layers."""
    return config.layers * 2 * config.kv_heads * config.head_width * torch.empty(0, dtype=dtype).element_size()


def neighbours(slots: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut slots, ascending, into runs (first, last index) of neighbours that look at their keys together.

    A run costs its slots times its longest length, and PRODUCT; the cut is the cheapest of all (dynamic programming).
    """
    cost, cut = [0.0], [0]  # of the first i slots: the cheapest, and where its last run begins
    for end in range(len(slots)):
        best, longest = (float("inf"), 0), 0
        for first in range(end, -1, -1):
            if slots[end] - slots[first] != end - first:
                break
            longest = max(longest, lengths[first])
            best = min(best, (cost[first] + PRODUCT + (end - first + 1) * longest, first))
        cost.append(best[0])
        cut.append(best[1])
    runs, end = [], len(slots)
    while end:
        runs.append((cut[end], end - 1))
        end = cut[end]
    return runs[::-1]
