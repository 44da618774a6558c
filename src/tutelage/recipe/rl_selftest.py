"""Checks of the installed PPO: the stage's own code on problems whose optimum is known exactly (`rlhf/token_mdp.py`).

    nothing -> one Check per problem: its name, whether it passed, and the numbers

The code under test is the code that trains a model: sampler, log-probabilities, shaped rewards, GAE, whitening, clipped
losses, AdamW steps and the ratio check. docs/results.md lists the deliberate bugs that the checks catch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.learning.optim import EMA, adamw, set_learning_rate
from tutelage.rlhf.diagnostics import SAMPLER_GAP
from tutelage.rlhf.learner import minibatches
from tutelage.rlhf.token_mdp import TWO_TOKENS, Table, TokenMDP, Values, length_problem, roll_out_table
from tutelage.stages.ppo import Learner, PPOConfig, estimate, improve

BETA = 0.5
OBJECTIVE_OFF, KL_OFF = 0.002, 0.01  # allowed relative errors; other seeds end within 1e-5 and .0012
SHORT, LONG = 3.0, 3.6  # tokens; the exact mean length is 3.287, and a whitened reward gives 1 or 12
HUGE = 1e9  # switches a clip off


@dataclass(frozen=True)
class Check:
    """The outcome of one check. `details` has the numbers, or the error that ended it."""

    name: str
    passed: bool
    details: str


def checks() -> Iterator[Check]:
    """All checks, which together take less than a minute."""
    for update in ("clip", "penalty", "trpo"):
        yield optimum_check(update)
    yield length_check()


def optimum_check(update: str) -> Check:
    """Whether PPO reaches the known optimum of eq. 2, at the KL of that optimum."""
    best, best_kl = TWO_TOKENS.optimum(BETA)
    name = f"the known optimum, {PPOConfig(update=update, ptx=False).algorithm}"  # type: ignore[arg-type]
    try:
        logits, gap = train_table(TWO_TOKENS, BETA, iterations=150, update=update)
    except InputError as error:
        return Check(name, False, str(error))
    reached, kl = TWO_TOKENS.objective(logits, BETA)
    near = abs(reached - best) <= OBJECTIVE_OFF * best and abs(kl - best_kl) <= KL_OFF * best_kl
    details = f"objective {reached:.4f} of {best:.4f}, KL {kl:.3f} of {best_kl:.3f} nats, sampler gap {gap:.1g}"
    return Check(name, near and gap <= SAMPLER_GAP["torch.float32"], details)


def length_check() -> Check:
    """Whether PPO leaves the length of responses unchanged when all responses have the same reward."""
    lengths = []
    for constant in (1.0, -1.0):
        problem = length_problem(constant)
        logits, _ = train_table(problem, 0.05, iterations=50)
        lengths.append(problem.mean_length(logits))
    exact = problem.mean_length(problem.reference_logits)
    details = f"mean {lengths[0]:.2f} tokens for a reward of 1, {lengths[1]:.2f} for -1, of {exact:.2f}"
    return Check("no length bias", all(SHORT < length < LONG for length in lengths), details)


def train_table(problem: TokenMDP, beta: float, iterations: int, seed: int = 0, **changed: Any) -> tuple[Tensor, float]:
    """Train a table with the stage's code. Returns its logits (S, V), and the largest sampler gap in nats per token."""
    sizes: dict[str, Any] = {"batch": 256, "minibatch": 64, "max_tokens": problem.longest}
    config = PPOConfig(**sizes, kl_coef=beta, value_clip=HUGE, grad_clip=HUGE, ptx=False, **changed)
    policy, value = Table(problem, problem.reference_logits), Values(problem)
    optimizers = [
        adamw(m.named_parameters(), lr=0.03, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-5) for m in (policy, value)
    ]
    learner = Learner(
        policy=policy,  # type: ignore[arg-type]
        optimizer=optimizers[0],
        average=EMA(policy, 0.0),
        value=value,  # type: ignore[arg-type]
        value_optimizer=optimizers[1],
    )
    seeds, gaps = count(seed * 10**9), []
    for iteration in range(iterations):
        # Linear decay to zero, as in lm-human-preferences: at a constant learning rate the policy only circles J*.
        left = 1 - iteration / iterations
        for optimizer in optimizers:
            set_learning_rate(optimizer, left)
        decayed = replace(config, update_kl=config.update_kl * left**2)  # a step's KL is quadratic in its size
        first, order = shuffled(seed, iteration), shuffled(seed, iteration)
        parts = list(minibatches(config.batch, config.minibatch, 1, first, torch.device("cpu")))
        rollout, gap = roll_out_table(problem, policy, value, [next(seeds) for _ in range(config.batch)], parts)
        gaps.append(gap)
        improve(learner, rollout, *estimate(rollout, decayed), decayed, order, iteration)
    return policy.table.detach(), max(gaps)


def shuffled(seed: int, iteration: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + iteration)
