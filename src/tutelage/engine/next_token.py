"""Choose the next token of each request in a batch, each with its own settings, and report its log-probability.

    logits (n, V), one TokenChoice per row -> tokens, their log-probabilities, the most likely alternatives

Tokens that a row's constraint rules out are removed first. Rows with the same settings go through the filters together.
The reported log-probabilities are those of the model's own distribution: log-softmax of the logits in fp32, before
constraints, penalties, bias, temperature and filters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.engine.constraint import Bits, constrained
from tutelage.engine.requests import Top
from tutelage.sampling.distribution import DistributionConfig, TokenHistory, draw, filtered_probabilities


@dataclass(frozen=True)
class TokenChoice:
    """How one row's token is chosen."""

    sampling: DistributionConfig
    chance: float  # uniform in [0, 1)
    history: TokenHistory | None  # needed if the settings have penalties
    allowed: Bits | None = None  # the tokens that the row's constraint allows


def choose(logits: Tensor, choices: Sequence[TokenChoice]) -> Tensor:
    """(n, V) logits -> (n,) tokens."""
    logits = constrained(logits, [choice.allowed for choice in choices])
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
    assert choice.history is not None, "penalties need a token history"
    return choice.history.penalise(logits, choice.sampling)


def own_logprobs(logits: Tensor, tokens: Tensor) -> list[float]:
    """(n, V) logits, (n,) tokens -> each token's log-probability under the model's own distribution, in fp32."""
    return (-F.cross_entropy(logits.float(), tokens, reduction="none")).tolist()


def alternatives(logits: Tensor, count: int, tokens: int) -> list[Top]:
    """The `count` most likely of the first `tokens` ids of each row of (n, V) logits, with their log-probabilities."""
    if count == 0:
        return [[] for _ in range(len(logits))]
    logits = logits.float()
    best = logits[:, :tokens].topk(min(count, tokens))
    logprobs = best.values - logits.logsumexp(-1, keepdim=True)
    return [list(zip(ids, values)) for ids, values in zip(best.indices.tolist(), logprobs.tolist())]
