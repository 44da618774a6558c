"""One prompt, several answers, one row: what a group of texts begins with is computed once.

    groups of texts -> lay_out -> rows [prompt | answer 1 | answer 2 | ...] -> scores, one per text

Every answer sees the prompt and itself, and its positions go on from the prompt's end, so that each score is what the
text would get alone. A ranking of K answers then costs one prompt, not K.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.model.heads import ScalarGPT

Group = tuple[tuple[int, ...], ...]  # texts that begin alike

ROWS_AT_ONCE = 8  # groups of like length in one forward pass: more would be padded more


@dataclass(frozen=True)
class SharedPrefixRows:
    """B rows: a prefix once, and behind it, side by side, up to K continuations that see it but not each other."""

    ids: Tensor  # (B, L)
    positions: Tensor  # (B, L) each continuation counts on from the end of the prefix
    branches: Tensor  # (B, L) 0 is the prefix, 1..K the continuations, -1 padding
    last: Tensor  # (B, K) index of each continuation's last token; the row's last one where it has fewer than K

    def mask(self) -> Tensor:
        """(B, 1, L, L) True where a token may look: backwards, within its own branch and the prefix."""
        mine, theirs = self.branches[:, :, None], self.branches[:, None, :]
        causal = torch.ones(self.ids.shape[1], self.ids.shape[1], dtype=torch.bool).tril()
        return (((mine == theirs) | ((theirs == 0) & (mine > 0))) & causal)[:, None]

    def path(self, row: int, k: int, length: int) -> Tensor:
        """(length,): where in its row each token of the k-th text stands, the shared ones first."""
        shared, end = int((self.branches[row] == 0).sum()), int(self.last[row, k]) + 1
        return torch.cat([torch.arange(shared), torch.arange(end - (length - shared), end)])


def lay_out(groups: Sequence[Sequence[Sequence[int]]], pad: int) -> SharedPrefixRows:
    """Lay out one row per group of sequences, what all of a group begin with standing there once.

    Every sequence keeps at least its last token to itself: that is where it is read.
    """
    shared = [common_prefix(group) for group in groups]
    shape = (len(groups), max(map(row_size, groups)))
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
    """One (K,) of scores per group of K texts, each read at its text's last token, where its turn ends.

    Groups of like length share a forward pass, and a group that stands there twice is run once.
    """
    device = model.score.weight.device
    scored: dict[Group, Tensor] = {}
    for some in alike(groups):
        rows = lay_out(some, pad)
        ids, last, positions, mask = (x.to(device) for x in (rows.ids, rows.last, rows.positions, rows.mask()))
        scores = model.at(ids, last, positions, mask)
        scored |= {group: row[: len(group)] for group, row in zip(some, scores, strict=True)}
    return [scored[as_key(group)] for group in groups]


def alike(groups: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[Group]]:
    """The different ones among these groups, those of like length together, as many at once as go into one pass."""
    different = sorted(set(map(as_key, groups)), key=lambda group: (row_size(group), group))
    for at in range(0, len(different), ROWS_AT_ONCE):
        yield different[at : at + ROWS_AT_ONCE]


def row_size(group: Sequence[Sequence[int]]) -> int:
    """Tokens of its row: what its sequences begin with counts once."""
    return sum(map(len, group)) - (len(group) - 1) * common_prefix(group)


def as_key(group: Sequence[Sequence[int]]) -> Group:
    return tuple(map(tuple, group))


def common_prefix(group: Sequence[Sequence[int]]) -> int:
    """Tokens that all sequences begin with, short of the shortest one's last token."""
    shortest = min(len(sequence) for sequence in group) - 1
    return next((i for i in range(shortest) if len({sequence[i] for sequence in group}) > 1), max(0, shortest))
