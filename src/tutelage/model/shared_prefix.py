"""Rows in which several texts share their common prefix, such as K responses to one prompt.

    groups of texts -> lay_out -> rows [prompt | response 1 | response 2 | ...] -> scores, one per text

Each response attends to the prompt and to itself, and its positions continue from the end of the prompt. Each score is
therefore that of the text by itself. A ranking of K responses computes its prompt once; InstructGPT (Ouyang et al.
2022, section 3.5) takes K forward passes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.model.heads import ScalarGPT
from tutelage.model.padding import rounded

Group = tuple[tuple[int, ...], ...]  # token ids of texts with a common prefix

ROWS_AT_ONCE = 8  # groups of similar length in one forward pass; larger batches need more padding


@dataclass(frozen=True)
class SharedPrefixRows:
    """B rows, each of one prefix and up to K continuations, which attend to the prefix but not to each other."""

    ids: Tensor  # (B, L)
    positions: Tensor  # (B, L), each continuation's counted from the end of the prefix
    branches: Tensor  # (B, L), 0 for the prefix, 1..K for the continuations, -1 for padding
    last: Tensor  # (B, K), column of each continuation's last token; rows with fewer than K repeat their last one

    def mask(self) -> Tensor:
        """(B, 1, L, L), True = may attend: causal, within the token's own branch and the prefix."""
        query, key = self.branches[:, :, None], self.branches[:, None, :]
        causal = torch.ones(self.ids.shape[1], self.ids.shape[1], dtype=torch.bool).tril()
        return (((query == key) | ((key == 0) & (query > 0))) & causal)[:, None]

    def path(self, row: int, k: int, length: int) -> Tensor:
        """(length,): the columns of the k-th text's `length` tokens in this row, those of the prefix first."""
        shared, end = int((self.branches[row] == 0).sum()), int(self.last[row, k]) + 1
        return torch.cat([torch.arange(shared), torch.arange(end - (length - shared), end)])


def lay_out(groups: Sequence[Sequence[Sequence[int]]], pad: int) -> SharedPrefixRows:
    """One row per group of token sequences, with the group's common prefix stored once.

    The last token of a sequence is never part of the prefix, because the sequence is scored there.
    """
    shared = [common_prefix(group) for group in groups]
    shape = (len(groups), rounded(max(map(row_size, groups))))
    ids, positions = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    branches = torch.full(shape, -1)
    last = torch.zeros(len(groups), max(len(group) for group in groups), dtype=torch.long)
    for row, (at, group) in enumerate(zip(shared, groups, strict=True)):
        ids[row, :at] = torch.tensor(group[0][:at])
        positions[row, :at], branches[row, :at] = torch.arange(at), 0
        start = at
        for k, sequence in enumerate(group):
            end = start + len(sequence) - at
            ids[row, start:end] = torch.tensor(sequence[at:])
            positions[row, start:end] = torch.arange(at, len(sequence))
            branches[row, start:end] = k + 1
            last[row, k:] = end - 1
            start = end
    return SharedPrefixRows(ids, positions, branches, last)


def score_texts(model: ScalarGPT, groups: Sequence[Sequence[Sequence[int]]], pad: int) -> list[Tensor]:
    """Scores (K,) for each group of K texts, read at the last token of each text, its end of turn.

    Groups of similar length share a forward pass, and equal groups are run once.
    """
    device = model.score.weight.device
    scored: dict[Group, Tensor] = {}
    for batch in length_batches(groups):
        rows = lay_out(batch, pad)
        ids, last, positions, mask = (x.to(device) for x in (rows.ids, rows.last, rows.positions, rows.mask()))
        scores = model.at(ids, last, positions, mask)
        scored |= {group: row[: len(group)] for group, row in zip(batch, scores, strict=True)}
    return [scored[as_key(group)] for group in groups]


def length_batches(groups: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[Group]]:
    """Batches of the distinct groups, sorted by the length of their rows, for one forward pass each."""
    distinct = sorted(set(map(as_key, groups)), key=lambda group: (row_size(group), group))
    for at in range(0, len(distinct), ROWS_AT_ONCE):
        yield distinct[at : at + ROWS_AT_ONCE]


def row_size(group: Sequence[Sequence[int]]) -> int:
    """Length of the group's row in tokens; the common prefix counts once."""
    return sum(map(len, group)) - (len(group) - 1) * common_prefix(group)


def as_key(group: Sequence[Sequence[int]]) -> Group:
    """The group as a hashable value."""
    return tuple(map(tuple, group))


def common_prefix(group: Sequence[Sequence[int]]) -> int:
    """Length of the prefix that all sequences share, excluding the last token of the shortest."""
    shortest = min(len(sequence) for sequence in group) - 1
    return next((i for i in range(shortest) if len({sequence[i] for sequence in group}) > 1), max(0, shortest))
