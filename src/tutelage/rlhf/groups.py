"""What RLOO and GRPO do alike: several responses to each prompt, compared with each other instead of a value network.

    repeat: prompts -> k sampled responses each -> scores -> advantages of whole responses -> steps of the policy

An algorithm (`stages/rloo.py`, `stages/grpo.py`) defines how scores become advantages, and the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tutelage.learning.groups import tied_groups
from tutelage.rlhf.config import GroupConfig
from tutelage.rlhf.history import Metrics
from tutelage.rlhf.learner import PolicyLearner, averaged, minibatch_order, minibatches, policy_learner
from tutelage.rlhf.loop import TrainingLoop
from tutelage.rlhf.setup import RLInputs, Setup, open_run, set_up, with_base
from tutelage.runs.adapter import save_tuned
from tutelage.sampling.rollout import Rollout


@dataclass(frozen=True)
class GroupAlgorithm:
    """What distinguishes one algorithm from another."""

    stage: str
    estimate: Callable[[Rollout, Any], Tensor]  # (rollout, config) -> (B,) advantages of its responses
    # (log pi (b, T), minibatch, its advantages (b,), config) -> the loss, what to log
    loss: Callable[[Tensor, Rollout, Tensor, Any], tuple[Tensor, Metrics]]


def learn_in_groups(algorithm: GroupAlgorithm, inputs: RLInputs, config: GroupConfig) -> None:
    """One run: train the policy against the reward and save it."""
    inputs = with_base(inputs)
    with open_run(algorithm.stage, inputs, config) as run:
        if run.finished:
            return
        steps = dict(minibatch=config.rows, epochs=config.passes, samples=config.samples)
        setup = set_up(run, inputs, config, mix=bool(inputs.corpus), critic=False, **steps)
        learner = policy_learner(setup.actors.policy, config)
        learner.mix = setup.mix
        loop = train(algorithm, setup, learner, config)
        results = loop.restore_best()
        save_tuned(inputs.out, learner.policy, setup.actors.tokenizer, inputs.policy, config)
        run.finish(results | setup.results(), loop.ending())


def train(algorithm: GroupAlgorithm, setup: Setup, learner: PolicyLearner, config: GroupConfig) -> TrainingLoop:
    """The algorithm box: roll out k responses a prompt; is it sound to learn?; improve; record."""
    loop = TrainingLoop(setup.run, config, learner, setup.actors.tokenizer)
    for iteration in loop.iterations():
        config = replace(config, kl_coef=loop.kl_coef)
        rollout, metrics = setup.roll_out(iteration, config, config.rows, config.samples)
        metrics["tied_groups"] = tied_groups(rollout.scores.view(-1, config.samples))
        if loop.should_learn(metrics, iteration):
            with loop.guarding(metrics, iteration):
                order = minibatch_order(setup.run, iteration)
                update = improve(algorithm, learner, rollout, config, order, iteration)
                loop.record(metrics | update, iteration)
    return loop


def improve(
    algorithm: GroupAlgorithm,
    learner: PolicyLearner,
    rollout: Rollout,
    config: GroupConfig,
    order: torch.Generator,
    iteration: int,
) -> Metrics:
    """Steps of the policy over one rollout. Returns what to log, averaged over the steps."""
    advantages = algorithm.estimate(rollout, config)
    steps: list[Metrics] = []
    for rows in minibatches(config.batch, config.rows, config.passes, order, advantages.device):
        minibatch = rollout.rows(rows)
        logprobs, ratio = learner.logprobs(minibatch, config, first=not steps)
        loss, metrics = algorithm.loss(logprobs, minibatch, advantages[rows], config)
        steps.append(ratio | metrics | learner.step(loss, iteration, config))
    return averaged(steps) | {"lr": learner.learning_rate}
