"""Token lists -> rows with little or no padding.

    stream(documents) -> windows        pretraining: documents and separators end to end, cut every L tokens
    pack(examples, L) -> Packed rows    fine-tuning: whole conversations packed into rows of L tokens

A pretraining window contains parts of several documents "not masked in any special way" (Brown et al. 2020, section
2.2). Packed conversations get block-diagonal causal attention and their positions restart at 0, so each one is computed
as if it were alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.text.tokenizer import Tokenizer

DOCUMENTS_AT_ONCE = 256  # encoded between two checks of the token count


def stream(documents: Sequence[Sequence[int]], separator: int) -> np.ndarray:
    """(N,) int32: all documents end to end, each followed by the separator."""
    total = sum(len(d) + 1 for d in documents)
    ids = np.full(total, separator, dtype=np.int32)
    at = 0
    for document in documents:
        ids[at : at + len(document)] = document
        at += len(document) + 1
    return ids


def document_opening(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before each document, such as BOS: a model trained with it has seen none without.

    Empty if it is the separator, which stands before each document anyway.
    """
    return [] if tokenizer.opening == [tokenizer.end_of_text_id] else tokenizer.opening


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each document, after its opening."""
    opening = document_opening(tokenizer)
    return [[*opening, *ids] for ids in tokenizer.encode_batch(texts)]


def encode_at_least(tokenizer: Tokenizer, texts: Sequence[str], needed: int, generator: torch.Generator) -> np.ndarray:
    """A stream of documents in random order: at least `needed` tokens, or all documents if they have fewer.

    Documents beyond the budget are not tokenized. On a laptop, tokenizing them would be most of the start-up time.
    """
    ids: list[list[int]] = []
    tokens = 0
    for batch in torch.randperm(len(texts), generator=generator).split(DOCUMENTS_AT_ONCE):
        if tokens >= needed:
            break
        ids += encode_documents(tokenizer, [texts[i] for i in batch.tolist()])
        tokens = sum(len(document) + 1 for document in ids)
    return stream(ids, tokenizer.end_of_text_id)


def window(ids: np.ndarray, rows: Sequence[int] | np.ndarray, length: int) -> Tensor:
    """(B, length + 1): windows `rows` of the stream. Window r starts at token r * length, the last of window r - 1."""
    return torch.from_numpy(np.stack([ids[r * length : (r + 1) * length + 1] for r in rows]).astype(np.int64))


def window_count(ids: np.ndarray, length: int) -> int:
    """How many windows of `length` inputs, each with its target, the stream contains."""
    return max(0, (len(ids) - 1) // length)


@dataclass(frozen=True)
class Windows:
    """A token stream and the order in which its windows are read. The order repeats when it ends."""

    ids: np.ndarray
    length: int  # tokens per window
    order: np.ndarray

    def batch(self, start: int, count: int) -> Tensor:
        """(count, length + 1): the windows at positions start .. start + count - 1 of the order."""
        return window(self.ids, self.order[np.arange(start, start + count) % len(self.order)], self.length)


@dataclass(frozen=True)
class Example:
    """One conversation: token ids, and which of them are trained on."""

    ids: list[int]
    supervised: list[bool]


@dataclass(frozen=True)
class Packed:
    """B packed rows of L tokens, each with one or more whole conversations."""

    ids: Tensor  # (B, L)
    positions: Tensor  # (B, L) position within the conversation, from 0
    segments: Tensor  # (B, L) index of the conversation within the row; -1 is padding
    supervised: Tensor  # (B, L) True where the token is a target, predicted from the tokens before it

    def mask(self) -> Tensor:
        """(B, 1, L, L) True where a query may attend: causal, within its conversation; padding attends to padding."""
        same = self.segments[:, :, None] == self.segments[:, None, :]
        causal = torch.ones(same.shape[1:], dtype=torch.bool).tril()
        return (same & causal)[:, None]


def pack_rows(lengths: Sequence[int], length: int) -> list[list[int]]:
    """First-fit decreasing: the indices of the examples in each row of `length` tokens.

    Raises ValueError if an example is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] > length:
            raise ValueError(f"example {i} has {lengths[i]} tokens, but a row has room for {length}")
        row = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if row is None:
            rows.append([])
            room.append(length)
            row = len(rows) - 1
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def pack(examples: Sequence[Sequence[Example]], length: int, pad: int) -> Packed:
    """Lay out each list of examples as a row of `length` tokens.

    The first token of a conversation is never a target, because the token before it belongs to another conversation.
    """
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
