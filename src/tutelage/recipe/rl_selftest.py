"""Gates for the installed PPO: the stage's own code on problems whose answers are known exactly (`rlhf/token_mdp.py`).

    nothing -> one Gate each: the name, whether it is passed, the numbers

What runs is what trains a model: sampler, log-probabilities, shaped rewards, GAE, whitening, clipped losses, AdamW
steps, the ratio check. Which deliberate bugs they catch stands in docs/results.md.
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
from tutelage.rlhf.token_mdp import DRIFT, Table, TokenMDP, Values, length_problem, roll_out_table
from tutelage.stages.ppo import Learner, PPOConfig, estimate, improve

BETA = 0.5
OBJECTIVE_OFF, KL_OFF = 0.002, 0.01  # relative; seeds end within 1e-5 and .0012
SHORT, LONG = 3.0, 3.6  # tokens around 3.287; a whitened reward gives 1 or 12


@dataclass(frozen=True)
class Gate:
    name: str
    passed: bool
    words: str


def gates() -> Iterator[Gate]:
    """Less than a minute in all."""
    for update in ("clip", "penalty", "trpo"):
        yield drift_gate(update)
    yield length_gate()


def drift_gate(update: str) -> Gate:
    """PPO must reach the optimum of eq. 2, and by no more drift than it is worth."""
    best, drift = DRIFT.optimum(BETA)
    name = f"the known optimum, {PPOConfig(update=update, ptx=False).algorithm}"  # type: ignore[arg-type]
    try:
        logits, gap = practise(DRIFT, BETA, iterations=150, update=update)
    except InputError as error:
        return Gate(name, False, str(error))
    reached, kl = DRIFT.objective(logits, BETA)
    near = abs(reached - best) <= OBJECTIVE_OFF * best and abs(kl - drift) <= KL_OFF * drift
    words = f"objective {reached:.4f} of {best:.4f}, KL {kl:.3f} of {drift:.3f} nats, sampler gap {gap:.1g}"
    return Gate(name, near and gap <= SAMPLER_GAP["torch.float32"], words)


def length_gate() -> Gate:
    """Where every response is worth the same, PPO must leave their length alone."""
    lengths = []
    for constant in (1.0, -1.0):
        problem = length_problem(constant)
        logits, _ = practise(problem, 0.05, iterations=50)
        lengths.append(problem.mean_length(logits))
    exact = problem.mean_length(problem.reference_logits)
    words = f"mean {lengths[0]:.2f} tokens for a reward of 1, {lengths[1]:.2f} for -1, of {exact:.2f}"
    return Gate("no taste for length", all(SHORT < length < LONG for length in lengths), words)


def practise(problem: TokenMDP, beta: float, iterations: int, seed: int = 0, **changed: Any) -> tuple[Tensor, float]:
    """Train a table with the stage's code. Returns its logits, and the largest gap of the sampler."""
    config = PPOConfig(batch=256, minibatch=64, max_tokens=problem.longest, kl_coef=beta, value_clip=1e9,
                       grad_clip=1e9, ptx=False, **changed)  # fmt: skip
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
        left = 1 - iteration / iterations  # linear to zero, as in lm-human-preferences: a constant rate only circles J*
        for optimizer in optimizers:
            set_learning_rate(optimizer, left)
        held = replace(config, update_kl=config.update_kl * left**2)  # the KL of a step goes with its square
        first, order = shuffled(seed, iteration), shuffled(seed, iteration)
        parts = list(minibatches(config.batch, config.minibatch, 1, first, torch.device("cpu")))
        rollout, gap = roll_out_table(problem, policy, value, [next(seeds) for _ in range(config.batch)], parts)
        gaps.append(gap)
        improve(learner, rollout, *estimate(rollout, held), held, order, iteration)
    return policy.table.detach(), max(gaps)


def shuffled(seed: int, iteration: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + iteration)
