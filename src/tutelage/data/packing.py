"""Token lists to full rows: no token of a batch is wasted on padding that packing can avoid.

    stream(documents) -> windows        pretraining: documents end to end, a separator between, cut every L tokens
    pack(examples, L) -> Packed rows    fine-tuning: whole conversations side by side that cannot see each other

Pretraining windows hold parts of several documents "not masked in any special way" (Brown et al. 2020, section 2.2).
Packed conversations get block-diagonal causal attention and positions that restart, so that each is computed as if it
were alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.text.tokenizer import Tokenizer

DOCUMENTS_AT_ONCE = 256  # encoded between two looks at the budget


def stream(documents: Sequence[Sequence[int]], separator: int) -> np.ndarray:
    """All documents end to end, each followed by the separator, as int32."""
    total = sum(len(d) + 1 for d in documents)
    ids = np.full(total, separator, dtype=np.int32)
    at = 0
    for document in documents:
        ids[at : at + len(document)] = document
        at += len(document) + 1
    return ids


def encode_enough(tokenizer: Tokenizer, texts: Sequence[str], needed: int, generator: torch.Generator) -> np.ndarray:
    """A stream of at least `needed` tokens from documents in random order, or of all documents if they hold fewer.

    What the budget will not read is not tokenized: on a laptop that is most of the start-up.
    """
    ids: list[list[int]] = []
    tokens = 0
    for some in torch.randperm(len(texts), generator=generator).split(DOCUMENTS_AT_ONCE):
        if tokens >= needed:
            break
        ids += tokenizer.encode_batch([texts[i] for i in some.tolist()])
        tokens = sum(len(document) + 1 for document in ids)
    return stream(ids, tokenizer.end_of_text_id)


def window(ids: np.ndarray, rows: Sequence[int] | np.ndarray, length: int) -> Tensor:
    """(B, length + 1): windows number `rows`; neighbours share a token, target of the one and start of the next."""
    return torch.from_numpy(np.stack([ids[r * length : (r + 1) * length + 1] for r in rows]).astype(np.int64))


def window_count(ids: np.ndarray, length: int) -> int:
    """How many windows of `length` tokens and their targets the stream holds."""
    return max(0, (len(ids) - 1) // length)


@dataclass(frozen=True)
class Windows:
    """A token stream and the order in which its windows are read; the order repeats when it ends."""

    ids: np.ndarray
    length: int  # tokens of a window
    order: np.ndarray

    def batch(self, start: int, count: int) -> Tensor:
        """(count, length + 1): windows number start .. start + count - 1 of the order."""
        return window(self.ids, self.order[np.arange(start, start + count) % len(self.order)], self.length)


@dataclass(frozen=True)
class Example:
    """One conversation: ids, and which of them are to be learnt."""

    ids: list[int]
    supervised: list[bool]


@dataclass(frozen=True)
class Packed:
    """B rows of L tokens with whole conversations side by side."""

    ids: Tensor  # (B, L)
    positions: Tensor  # (B, L) restart at 0 in each conversation
    segments: Tensor  # (B, L) which conversation of the row; -1 is padding
    supervised: Tensor  # (B, L) True where the token is to be predicted from the one before it

    def mask(self) -> Tensor:
        """(B, 1, L, L) True where a token may look: backwards, within its own conversation; a pad sees itself."""
        same = self.segments[:, :, None] == self.segments[:, None, :]
        causal = torch.ones(same.shape[1:], dtype=torch.bool).tril()
        return (same & causal)[:, None]


def pack_rows(lengths: Sequence[int], length: int) -> list[list[int]]:
    """First-fit decreasing: which examples share a row of `length` tokens. Raises ValueError if one is longer."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] > length:
            raise ValueError(f"example {i} has {lengths[i]} tokens, a row holds {length}")
        row = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if row is None:
            rows.append([])
            room.append(length)
            row = len(rows) - 1
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def pack(examples: Sequence[Sequence[Example]], length: int, pad: int) -> Packed:
    """Lay out rows of examples. A conversation's first token is never a target: nothing of its own precedes it."""
    shape = (len(examples), length)
    ids, positions = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    segments, supervised = torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool)
    for row, conversations in enumerate(examples):
        at = 0
        for segment, example in enumerate(conversations):
            end = at + len(example.ids)
            ids[row, at:end] = torch.tensor(example.ids)
            positions[row, at:end] = torch.arange(len(example.ids))
            segments[row, at:end] = segment
            supervised[row, at + 1 : end] = torch.tensor(example.supervised[1:], dtype=torch.bool)
            at = end
    return Packed(ids, positions, segments, supervised)
