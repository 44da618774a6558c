"""The next token of each request in a batch, each by its own settings, and how likely it was.

    hidden states (n, C), one TokenChoice per row -> tokens, their log-probabilities, the most likely alternatives

Rows with the same settings go through the filters together. What is reported is the model's own distribution:
log-softmax of the logits in fp32, before penalties, bias, temperature and filters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.engine.requests import Top
from tutelage.sampling.distribution import DistributionConfig, Written, draw, filtered_probabilities


@dataclass(frozen=True)
class TokenChoice:
    """How one row's token is chosen."""

    sampling: DistributionConfig
    chance: float  # the uniform number that decides
    said: Written | None  # what was written so far, where that costs


def choose(logits: Tensor, choices: Sequence[TokenChoice]) -> Tensor:
    """(n, V) logits -> (n,) tokens."""
    groups: dict[DistributionConfig, list[int]] = {}
    for row, choice in enumerate(choices):
        groups.setdefault(choice.sampling, []).append(row)
    tokens = torch.empty(len(choices), dtype=torch.long, device=logits.device)
    for sampling, rows in groups.items():
        own = logits if len(rows) == len(choices) else logits[rows]
        if sampling.penalised:
            own = torch.cat([_penalised(own[i : i + 1], choices[row]) for i, row in enumerate(rows)])
        chance = torch.tensor([choices[row].chance for row in rows], dtype=torch.float32, device=logits.device)
        tokens[rows] = draw(filtered_probabilities(own, sampling), chance)
    return tokens


def _penalised(logits: Tensor, choice: TokenChoice) -> Tensor:
    assert choice.said is not None, "penalties without a count"
    return choice.said.penalise(logits, choice.sampling)


def own_logprobs(logits: Tensor, tokens: Tensor) -> list[float]:
    """log p of each row's token, fp32."""
    return (-F.cross_entropy(logits.float(), tokens, reduction="none")).tolist()


def alternatives(logits: Tensor, count: int) -> list[Top]:
    """Each row's `count` most likely tokens."""
    if count == 0:
        return [[] for _ in range(len(logits))]
    logits = logits.float()
    found = logits.topk(min(count, logits.shape[-1]))
    logprobs = found.values - logits.logsumexp(-1, keepdim=True)
    return [list(zip(ids, values)) for ids, values in zip(found.indices.tolist(), logprobs.tolist())]
