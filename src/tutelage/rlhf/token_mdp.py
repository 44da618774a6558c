"""Two token-level decision processes with exact solutions, and tabular models that PPO's own code can train on them.

    TokenMDP -> rollouts of a tabular policy;  TokenMDP, beta -> the exact J* and KL* that PPO has to reach

A "language" of a few tokens in which the last token is the state. Every response can be enumerated, so the optimum of
InstructGPT's eq. 2 is known exactly: pi* ~ pi_ref exp(r / beta), J* = beta log Z.
TWO_TOKENS: seven responses of at most two tokens. Its rewards expose a misplaced score, a lost end and a wrong KL.
`length_problem`: one word and an end of turn, the same reward for every response. The optimum is the reference, with a
mean length of 3.287 tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.rlhf.rollouts import sampler_gap
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import Rollout, pad_responses, response_scores, score_rollout
from tutelage.sampling.sampler import Response, generate

Tokens = tuple[int, ...]  # of one response


@dataclass(frozen=True)
class TokenMDP:
    """V tokens, the last one the end of turn; then START and PAD. S states; the state before the first token is 0."""

    reference: tuple[tuple[float, ...], ...]  # (S, V) probabilities
    after: tuple[int, ...]  # (V,) the state that each token leads to
    longest: int  # tokens of a response
    reward: Callable[[Tokens], float]

    @property
    def end(self) -> int:
        return len(self.after) - 1

    @property
    def start(self) -> int:
        return self.end + 1

    @property
    def reference_logits(self) -> Tensor:
        return torch.tensor(self.reference).log()

    def responses(self, begun: Tokens = ()) -> Iterator[Tokens]:
        """Every possible response."""
        if len(begun) == self.longest or begun[-1:] == (self.end,):
            yield begun
            return
        for token in range(len(self.after)):
            yield from self.responses((*begun, token))

    def logprob(self, logits: Tensor, response: Tokens) -> float:
        """log pi(response) under a table of logits (S, V), in double precision."""
        table = logits.double().log_softmax(-1)
        states = (0, *(self.after[token] for token in response))
        return sum(float(table[state, token]) for state, token in zip(states, response, strict=False))

    def objective(self, logits: Tensor, beta: float) -> tuple[float, float]:
        """Exact J = E[r] - beta KL, and the KL, of a table of logits."""
        reference, reward, kl = self.reference_logits, 0.0, 0.0
        for response in self.responses():
            logp = self.logprob(logits, response)
            reward += math.exp(logp) * self.reward(response)
            kl += math.exp(logp) * (logp - self.logprob(reference, response))
        return reward - beta * kl, kl

    def optimum(self, beta: float) -> tuple[float, float]:
        """J* = beta log Z, and the KL of pi* = pi_ref exp(r / beta) / Z."""
        reference, everything = self.reference_logits, list(self.responses())
        rewards = torch.tensor([self.reward(response) for response in everything], dtype=torch.double)
        prior = torch.tensor([self.logprob(reference, response) for response in everything], dtype=torch.double)
        log_z = (prior + rewards / beta).logsumexp(0)
        best = prior + rewards / beta - log_z
        return float(beta * log_z), float((best.exp() * (best - prior)).sum())

    def mean_length(self, logits: Tensor) -> float:
        return sum(math.exp(self.logprob(logits, response)) * len(response) for response in self.responses())


def two_token_reward(response: Tokens) -> float:
    """The table of rewards. Ending at once has a reward, so that losing the end of turn shows."""
    table = {(2,): 0.7, (0, 2): 1.0, (1, 2): 0.5, (0, 0): -1.0, (0, 1): -1.0, (1, 0): -1.0, (1, 1): 2.0}
    return table[response]


TWO_TOKENS = TokenMDP(((0.5, 0.3, 0.2), (0.4, 0.4, 0.2), (0.1, 0.2, 0.7)), (1, 2, 0), 2, two_token_reward)


def length_problem(constant: float) -> TokenMDP:
    return TokenMDP(((0.7, 0.3),), (0, 0), 12, lambda response: constant)


class Table(nn.Module):
    """A language model whose hidden state is the one-hot state and whose head is a table of logits (S, V)."""

    compute_dtype = torch.float32

    def __init__(self, problem: TokenMDP, logits: Tensor):
        super().__init__()
        self.table = nn.Parameter(logits.clone())
        self.embedding = SimpleNamespace(weight=self.table)
        self.state = state_of(problem)
        self.config = SimpleNamespace(
            bands=(0,), kv_heads=1, head_width=1, context=problem.longest + 1, vocab_size=logits.shape[1]
        )

    def trunk(
        self,
        ids: Tensor,
        positions: object = None,
        mask: object = None,
        cache: object = None,
        stream: object = None,
        first: int = 0,
    ) -> Tensor:
        if cache is not None:
            cache.advance(ids.shape[1])  # type: ignore[attr-defined]
        return nn.functional.one_hot(self.state[ids[:, first:]], self.table.shape[0]).float()

    @property
    def head_weight(self) -> Tensor:
        return self.table.T

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.table


class Values(nn.Module):
    """A value network with one number per state."""

    trunk = None

    def __init__(self, problem: TokenMDP, values: Sequence[float] = ()):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(values or [0.0] * len(problem.reference)))
        self.state = state_of(problem)

    def forward(self, ids: Tensor, stream: object = None, first: int = 0) -> Tensor:
        return self.table[self.state[ids[:, first:]]]


class Rewards(nn.Module):
    """A reward model: the problem's reward of what follows START."""

    trunk = None

    def __init__(self, problem: TokenMDP):
        super().__init__()
        self.problem = problem

    def at(self, ids: Tensor, last: Tensor, stream: object = None) -> Tensor:
        rows = zip(ids.tolist(), last.tolist(), strict=True)
        return torch.tensor([self.problem.reward(tuple(row[1 : end + 1])) for row, end in rows])


def state_of(problem: TokenMDP) -> Tensor:
    """(V + 2,) the state after each token; START and PAD lead to state 0."""
    return torch.tensor([*problem.after, 0, 0])


def roll_out_table(
    problem: TokenMDP, policy: Table, value: Values, seeds: Sequence[int], parts: Sequence[Tensor]
) -> tuple[Rollout, float]:
    """Like `rollouts.roll_out`: sampled, padded, scored by all models; also returns the sampler gap."""
    prompts = [[problem.start]] * len(seeds)
    sampling = SamplingConfig(max_tokens=problem.longest)
    sampled = [response for (response,) in generate(policy, prompts, seeds, problem.end, sampling)]  # type: ignore[arg-type]
    # Here a response cut at the limit has its own reward, without the penalty of a missing end.
    whole = [Response(response.ids, response.logprobs, True) for response in sampled]
    responses = pad_responses(prompts, whole, problem.start + 1, torch.device("cpu"))
    reference = Table(problem, problem.reference_logits)
    scores = response_scores(Rewards(problem), responses)  # type: ignore[arg-type]
    models: dict[str, Any] = {"policy": policy, "reference": reference, "value": value}
    rollout = score_rollout(**models, scores=scores, responses=responses, parts=parts, temperature=1.0)
    return rollout, sampler_gap(sampled, rollout)
