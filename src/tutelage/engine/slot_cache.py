"""The KV cache for continuous batching: one slot per request, and one forward pass for all requests.

    plan(decoding, chunks) -> trunk(ids (1, N), positions (1, N), cache=slots) -> hidden (1, N, C)

The N tokens of a pass form one row: first one token of each decoding request, then prefill chunks. Linear maps see one
matrix; only attention, in this module, knows which token belongs to which request. Neighbouring slots of similar length
attend in one product (`neighbours`); a prefill chunk attends to its own slot. Both do the same operations in the same
order, so a token's numbers depend neither on how its prompt was cut into chunks nor on the other requests in the pass.
This holds bit for bit if the matrix products have that property (bf16 on CPU; LOG.md).

A slot is stored in blocks: the first blocks of all slots lie side by side in one tensor, the second blocks in another,
and so on. Neighbouring slots then form one dense tensor per block. A product over a slice of a larger tensor would copy
it first, which took half of the time.

On CPUs with AMX, bf16 products of batches have that property within limits only (oneDNN 3.12, measured): two rows or
more, 64 numbers or more in the left factor, sums over at most 384 numbers, a multiple of 32. Longer sums are split, and
by the number of rows. There blocks are cut accordingly, and `padded_bmm` adds rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.model.config import GPTConfig
from tutelage.model.prepack import has_amx

BLOCK = 128  # tokens in the first blocks; a later block is up to half as long as all before it together
AMX_LONGEST, AMX_MULTIPLE = 384, 32  # tokens in a block, with AMX
PRODUCT = 300  # cost of one more matrix product, in keys attended to (approximate)

SavedKV = list[Tensor]  # a slot's first tokens by block: (layers, 2, kv_heads, tokens, D)


@dataclass(frozen=True)
class Write:
    """The tokens of a pass whose keys and values go into one block."""

    block: int
    tokens: Tensor  # indices among the N
    slots: Tensor
    at: Tensor  # positions in the block


@dataclass(frozen=True)
class AttentionGroup:
    """Tokens of a pass that attend in one product: one for each of several slots, or a prefill chunk of one slot."""

    tokens: slice
    slots: slice
    blocks: int  # number of blocks per slot that are attended to
    causal: Tensor  # (slots, 1, 1, L, keys) added to the scores: 0 if the key is visible, else -1e9
    banded: Tensor  # the same for banded (sliding-window) layers


class SlotCache:
    """Keys and values of every layer for `count` requests of up to `context` tokens: a `Cache` for `GPT.trunk`.

    Banded layers keep all tokens, too, because a request may start from any prefix of a slot.
    """

    length = 0  # unused: the plan has each request's own length

    def __init__(self, config: GPTConfig, count: int, context: int, dtype: torch.dtype, device: torch.device):
        self.config, self.device = config, device
        self.groups, self.scale = config.heads // config.kv_heads, config.head_width**-0.5
        self.amx = dtype == torch.bfloat16 and device.type == "cpu" and has_amx()
        self.starts = block_starts(context, AMX_LONGEST if self.amx else context)
        end = -(-context // AMX_MULTIPLE) * AMX_MULTIPLE if self.amx else context
        sizes = np.diff([*self.starts, end])
        shapes = [(config.layers, 2, count, config.kv_heads, int(size), config.head_width) for size in sizes]
        self.kv = [_zeros(shape, dtype, device) for shape in shapes]
        self.tokens = 0  # number of planned tokens
        self.writes: list[Write] = []
        self.attention: list[AttentionGroup] = []

    def blocks(self, tokens: int) -> int:
        """The number of blocks that hold a slot's first `tokens` tokens."""
        return int(np.searchsorted(self.starts, tokens))

    def nbytes(self, tokens: int) -> int:
        """The size in bytes of what `take` returns for `tokens` tokens."""
        return sum(part.nbytes for part in self._first(0, tokens))

    def take(self, slot: int, tokens: int) -> SavedKV:
        """A copy of the keys and values of a slot's first tokens."""
        return [part.clone() for part in self._first(slot, tokens)]

    def put(self, slot: int, saved: SavedKV, tokens: int) -> None:
        """Write the first tokens of `saved` into a slot."""
        for part, block in zip(self._first(slot, tokens), saved, strict=False):
            part.copy_(block[:, :, :, : part.shape[3]])

    def _first(self, slot: int, tokens: int) -> SavedKV:
        """Views of a slot's first tokens, block by block."""
        parts = zip(self.kv[: self.blocks(tokens)], self.starts, strict=False)
        return [kv[:, :, slot, :, : tokens - start] for kv, start in parts]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of one slot into another."""
        self.put(target, [kv[:, :, source] for kv in self.kv], tokens)

    def plan(self, decoding: Sequence[tuple[int, int]], chunks: Sequence[tuple[int, int, int]]) -> None:
        """Plan the next pass: (slot, position) of decoding tokens, slots ascending; (slot, start, count) of chunks.

        If the pass has more tokens than these, the others are padding: they are not stored and attend to nothing.
        """
        slots, ends = [slot for slot, _ in decoding], [at + 1 for _, at in decoding]
        owners = np.repeat(
            [*slots, *(slot for slot, _, _ in chunks)], [*(1 for _ in slots), *(n for _, _, n in chunks)]
        )
        at = np.concatenate([np.array(ends, dtype=np.int64) - 1, *(np.arange(s, s + n) for _, s, n in chunks)])
        self.tokens = len(at)
        self.writes = self._writes(owners, at)
        runs = [(first, last + 1) for first, last in neighbours(slots, ends)]
        self.attention = [self._group(slice(*run), slots[run[0]], at[slice(*run), None]) for run in runs]
        token = len(slots)
        for slot, _, count in chunks:
            self.attention.append(self._group(slice(token, token + count), slot, at[None, token : token + count]))
            token += count

    def _writes(self, slots: np.ndarray, at: np.ndarray) -> list[Write]:
        """slots (N,) and positions at (N,) of the tokens -> one `Write` per block."""
        block = np.searchsorted(self.starts, at, side="right") - 1
        writes = []
        for number in np.unique(block):
            tokens = (block == number).nonzero()[0]
            where = (tokens, slots[tokens], at[tokens] - self.starts[number])
            writes.append(Write(int(number), *(torch.from_numpy(x).to(self.device) for x in where)))
        return writes

    def _group(self, tokens: slice, slot: int, at: np.ndarray) -> AttentionGroup:
        """at (slots, L): positions of the tokens in each of the slots, which are consecutive and begin at `slot`."""
        blocks = self.blocks(int(at.max()) + 1)
        keys = torch.arange(sum(kv.shape[4] for kv in self.kv[:blocks]), device=self.device)
        back = (torch.from_numpy(at).to(self.device)[..., None] - keys)[:, None, None]
        future, band = back < 0, self.config.band
        causal, banded = (
            torch.zeros(back.shape, dtype=self.kv[0].dtype, device=self.device).masked_fill_(invisible, -1e9)
            for invisible in (future, future | (back >= band) if band else future)
        )
        return AttentionGroup(tokens, slice(slot, slot + len(at)), blocks, causal, banded)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Store k, v (1, kv_heads, N, D) and let q (1, H, N, D) attend as planned: (1, H, N, D). `mask` is unused."""
        new = torch.stack([k[0].transpose(0, 1), v[0].transpose(0, 1)], 1)  # (N, 2, kv_heads, D)
        for write in self.writes:
            chosen = new[: self.tokens] if len(self.writes) == 1 else new[write.tokens]
            self.kv[write.block][layer, :, write.slots, :, write.at] = chosen
        queries = q[0].transpose(0, 1) * self.scale  # (N, H, D)
        outputs = [self._attend_group(layer, group, queries[group.tokens]) for group in self.attention]
        return torch.cat([*outputs, torch.zeros_like(queries[self.tokens :])]).transpose(0, 1)[None]

    def _attend_group(self, layer: int, group: AttentionGroup, queries: Tensor) -> Tensor:
        """Attention of one group: scaled queries (tokens, H, D) -> (tokens, H, D)."""
        count, L = group.causal.shape[0], group.causal.shape[3]
        kv_heads, D = self.config.kv_heads, self.config.head_width
        keys, values = (
            [kv[layer, which, group.slots].view(count * kv_heads, -1, D) for kv in self.kv[: group.blocks]]
            for which in range(2)
        )
        queries = queries.view(count, L, kv_heads, self.groups, D).permute(0, 2, 3, 1, 4)
        queries = queries.reshape(count * kv_heads, self.groups * L, D)
        bmm = padded_bmm if self.amx else torch.bmm
        scores = torch.cat([bmm(queries, block.mT) for block in keys], -1)
        bias = group.banded if self.config.bands[layer] else group.causal
        scores.view(count, kv_heads, self.groups, L, -1).add_(bias)
        weights = scores.softmax(-1).split([block.shape[1] for block in values], -1)
        output = bmm(weights[0], values[0])
        if len(values) > 1:  # sums in fp32, in the order of the text; blocks past a row's end add exact zeros
            total = output.float()
            for block_weights, block in zip(weights[1:], values[1:], strict=True):
                total += bmm(block_weights, block)
            output = total.to(output.dtype)
        output = output.view(count, kv_heads, self.groups, L, D).permute(0, 3, 1, 2, 4)
        return output.reshape(count * L, kv_heads * self.groups, D)

    def banded(self, tokens: int, mask: Tensor | None) -> None:
        """Returns no mask: the plan says which keys are outside the band."""

    def advance(self, tokens: int) -> None:
        """Does nothing: each request counts its own tokens."""


def padded_bmm(a: Tensor, b: Tensor) -> Tensor:
    """torch.bmm of a (B, L, K) and b. A short `a` gets rows of zeros: oneDNN would compute it without AMX."""
    missing = max(2, -(-64 // a.shape[2])) - a.shape[1]
    return torch.bmm(F.pad(a, (0, 0, 0, missing)), b)[:, : a.shape[1]] if missing > 0 else torch.bmm(a, b)


def block_starts(context: int, longest: int) -> list[int]:
    """The positions at which the blocks of a slot begin. No block has more than `longest` tokens."""
    starts = [0]
    while (end := starts[-1] + min(longest, max(BLOCK, starts[-1] // 2 // BLOCK * BLOCK))) < context:
        starts.append(end)
    return starts


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU, pages of this memory are taken when first written: most slots never reach their full length."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.from_numpy(np.zeros(int(np.prod(shape)) * size, dtype=np.uint8)).view(dtype).view(*shape)


def bytes_per_token(config: GPTConfig, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers."""
    return config.layers * 2 * config.kv_heads * config.head_width * torch.empty(0, dtype=dtype).element_size()


def neighbours(slots: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Split ascending slots into runs (first, last index) of neighbours that attend in one product.

    A run costs its number of slots times its longest length, plus PRODUCT. The split is the cheapest one
    (dynamic programming).
    """
    cost, cut = [0.0], [0]  # for the first i slots: the least cost, and where the last run begins
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
