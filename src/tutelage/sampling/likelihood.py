"""The log-probability that a policy gives to texts it did not sample.

    groups of texts, one prompt each -> rows (`model/shared_prefix.py`) -> hidden states of the responses -> sum log pi

A response's log-probability is the sum over its own tokens and its end-of-turn, never over prompt tokens. Log-softmax
is in fp32, and the head runs on response tokens only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.learning.head import head_logprobs
from tutelage.model.gpt import GPT
from tutelage.model.shared_prefix import Group, as_key, lay_out, length_batches


def summed_logprobs(
    policy: GPT, groups: Sequence[Sequence[Sequence[int]]], prompts: Sequence[int], pad: int
) -> list[Tensor]:
    """One (K,) tensor per group of K texts: log pi(response | prompt).

    `prompts` gives each group's prompt length: the first so many tokens of each of its texts. The prefix that a group's
    texts share is computed once, and a group that occurs twice is run once.
    """
    starts = {as_key(group): start for group, start in zip(groups, prompts, strict=True)}
    sums: dict[Group, Tensor] = {}
    for batch in length_batches(groups):
        batch_sums = _row_logprobs(policy, batch, [starts[group] for group in batch], pad)
        sums |= dict(zip(batch, batch_sums.split([len(group) for group in batch]), strict=True))
    return [sums[as_key(group)] for group in groups]


def _row_logprobs(policy: GPT, groups: Sequence[Group], starts: Sequence[int], pad: int) -> Tensor:
    """One forward pass: the sums of all texts of all groups, in order, as one vector."""
    device = policy.embedding.weight.device
    rows = lay_out(groups, pad)
    paths, row = [], []
    for r, (group, start) in enumerate(zip(groups, starts, strict=True)):
        # From the prompt's last token, because it predicts the response's first one.
        paths += [rows.path(r, k, len(text))[start - 1 :] for k, text in enumerate(group)]
        row += [torch.full((len(text) - start,), r) for text in group]
    where, before, at = torch.cat(row), torch.cat([p[:-1] for p in paths]), torch.cat([p[1:] for p in paths])
    hidden = policy.trunk(rows.ids.to(device), rows.positions.to(device), rows.mask().to(device))
    predicting, predicted = hidden[where.to(device), before.to(device)], rows.ids[where, at].to(device)
    logprobs = head_logprobs(predicting, policy.head_weight, predicted)
    return torch.stack([each.sum() for each in logprobs.split([len(path) - 1 for path in paths])])
