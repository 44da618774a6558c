"""Answers that are given, not sampled: how likely a policy finds them.

    groups of texts, one prompt each -> rows (`model/shared_prefix.py`) -> hidden states of the answers -> sum log pi

An answer's log-probability is the sum over its own tokens and the end of its turn; the prompt's tokens never count.
Log-softmax is in fp32, and the head runs on answers only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.learning.head import head_logprobs
from tutelage.model.gpt import GPT
from tutelage.model.shared_prefix import Group, alike, as_key, lay_out


def summed_logprobs(
    policy: GPT, groups: Sequence[Sequence[Sequence[int]]], prompts: Sequence[int], pad: int
) -> list[Tensor]:
    """One (K,) per group of K texts: log pi(answer | prompt), the prompt being the first so many tokens of each.

    What a group's texts begin with is computed once, and a group that stands there twice is run once.
    """
    starts = {as_key(group): start for group, start in zip(groups, prompts, strict=True)}
    found: dict[Group, Tensor] = {}
    for some in alike(groups):
        sums = _row_logprobs(policy, some, [starts[group] for group in some], pad)
        found |= dict(zip(some, sums.split([len(group) for group in some]), strict=True))
    return [found[as_key(group)] for group in groups]


def _row_logprobs(policy: GPT, groups: Sequence[Group], starts: Sequence[int], pad: int) -> Tensor:
    """The sums of all texts of all groups, one after the other, in one pass."""
    device = policy.embedding.weight.device
    rows = lay_out(groups, pad)
    paths, row = [], []
    for r, (group, start) in enumerate(zip(groups, starts, strict=True)):
        # From the prompt's last token, which predicts the answer's first one.
        paths += [rows.path(r, k, len(text))[start - 1 :] for k, text in enumerate(group)]
        row += [torch.full((len(text) - start,), r) for text in group]
    where, before, at = torch.cat(row), torch.cat([p[:-1] for p in paths]), torch.cat([p[1:] for p in paths])
    hidden = policy.trunk(rows.ids.to(device), rows.positions.to(device), rows.mask().to(device))
    logprobs = head_logprobs(
        hidden[where.to(device), before.to(device)], policy.head_weight, rows.ids[where, at].to(device)
    )
    return torch.stack([each.sum() for each in logprobs.split([len(path) - 1 for path in paths])])
