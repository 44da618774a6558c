"""A problem whose answer is known: the tiny token MDP with a tabular policy.

Vocabulary {0, 1, END = 2}, at most two tokens, three states: (), (0), (1). The reference policy, the rewards, and the
closed-form optimum pi* ~ pi_ref exp(r / beta) come from the definition, computed here by enumeration in Python floats.
"""

import math
from types import SimpleNamespace

import torch
from torch import nn

from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import Rollout, pad_responses, response_logprobs, response_values
from tutelage.sampling.sampler import Response, generate

END, START, PAD = 2, 3, 4
REFERENCE = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])  # states (), (0), (1)
RESPONSES = [(2,), (0, 2), (1, 2), (0, 0), (0, 1), (1, 0), (1, 1)]
REWARDS = {
    "A": {(2,): 0.0, (0, 2): 1.0, (1, 2): 0.5, (0, 0): -1.0, (0, 1): -1.0, (1, 0): -1.0, (1, 1): 2.0},
    "B": {(2,): 0.7, (0, 2): 1.0, (1, 2): 0.5, (0, 0): -1.0, (0, 1): -1.0, (1, 0): -1.0, (1, 1): 2.0},
}
# J*, KL*: algorithms tables for both MDPs, to six decimals.
OPTIMA = {
    ("A", 2.0): (0.113559, 0.115685), ("A", 0.5): (0.788853, 1.526414), ("A", 0.1): (1.718667, 2.812561),
    ("B", 2.0): (0.265976, 0.113787), ("B", 0.5): (0.848254, 1.268050), ("B", 0.1): (1.718667, 2.812456),
}  # fmt: skip
THETA = REFERENCE.log() + torch.tensor([[0.5, -0.2, 0.0], [0.0, 0.3, -0.1], [0.2, 0.0, -0.4]])


class Table(nn.Module):
    """A "language model" whose hidden state is the one-hot state and whose head is the table of logits."""

    compute_dtype = torch.float32
    config = SimpleNamespace(bands=(0,), kv_heads=1, head_width=1, context=8, vocab_size=3)

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.table = nn.Parameter(logits.clone())
        self.embedding = SimpleNamespace(weight=self.table)

    def trunk(self, ids, positions=None, mask=None, cache=None, stream=None, first=0):
        if cache is not None:
            cache.advance(ids.shape[1])
        ids = ids[:, first:]
        state = torch.where(ids == START, 0, torch.where(ids == 0, 1, torch.where(ids == 1, 2, 0)))
        return nn.functional.one_hot(state, 3).float()

    @property
    def head_weight(self):
        return self.table.T

    def logits(self, hidden):
        return hidden @ self.table


class Values(nn.Module):
    """A number per state."""

    def __init__(self, values=(0.0, 0.0, 0.0)):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(values, dtype=torch.float32))

    trunk = None

    def forward(self, ids, stream=None, first=0):
        return Table.trunk(self, ids, first=first) @ self.table


def probability(table: torch.Tensor, response: tuple[int, ...]) -> float:
    """By definition: the product of the chosen tokens' softmax probabilities."""
    p, state = 1.0, 0
    for token in response:
        row = [math.exp(x) for x in table[state].tolist()]
        p *= row[token] / sum(row)
        state = token + 1
    return p


def exact(table: torch.Tensor, rewards: dict, beta: float) -> tuple[float, float]:
    """J = E[r] - beta KL and KL, by enumeration."""
    reference = REFERENCE.log()
    kl = sum(probability(table, y) * math.log(probability(table, y) / probability(reference, y)) for y in RESPONSES)
    return sum(probability(table, y) * rewards[y] for y in RESPONSES) - beta * kl, kl


def every_response(policy: Table) -> tuple:
    """All seven responses as one batch, and their probabilities."""
    answers = [Response(list(y), [0.0] * len(y), y[-1] == END) for y in RESPONSES]
    responses = pad_responses([[START]] * len(answers), answers, PAD, torch.device("cpu"))
    weights = torch.tensor([probability(policy.table.detach(), y) for y in RESPONSES])
    return responses, weights


def play(policy: Table, value: Values | None, rewards: dict, seeds: list[int], samples: int = 1) -> Rollout:
    """A rollout by the real sampler and the real log-probabilities: one prompt, a response per seed."""
    prompts = [[START]] * (len(seeds) // samples)
    groups = generate(policy, prompts, seeds, END, SamplingConfig(max_tokens=2), samples)
    answers = [answer for group in groups for answer in group]
    responses = pad_responses([[START]] * len(answers), answers, PAD, torch.device("cpu"))
    with torch.no_grad():
        return Rollout(
            responses, response_logprobs(policy, responses), response_logprobs(Table(REFERENCE.log()), responses),
            response_values(value, responses) if value else None,
            torch.tensor([rewards[tuple(answer.ids)] for answer in answers]),
        )  # fmt: skip
