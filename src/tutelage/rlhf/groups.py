"""What RLOO and GRPO do alike: several responses to each prompt, held against each other instead of a value network.

    repeat: prompts -> k sampled responses each -> scores -> advantages of whole responses -> steps of the policy

A method (`stages/rloo.py`, `stages/grpo.py`) says how scores become advantages, and what the loss of their tokens is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.learning.groups import tied_groups
from tutelage.rewards.open import one_input, reward_inputs
from tutelage.rewards.reward import Reward
from tutelage.rlhf.actors import (
    Actors,
    EncodedPrompt,
    encode_prompts,
    judge_score,
    load_actors,
    load_judge,
    next_rollout,
)
from tutelage.rlhf.config import GroupConfig
from tutelage.rlhf.history import Line
from tutelage.rlhf.learner import (
    PolicyLearner,
    averaged,
    first_epoch,
    minibatch_order,
    minibatches,
    policy_learner,
    policy_step,
)
from tutelage.rlhf.loop import KLBudget
from tutelage.rlhf.pretraining_mix import open_mix
from tutelage.runs.adapter import save_tuned
from tutelage.runs.base import find_base
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run
from tutelage.sampling.rollout import Rollout, describe


@dataclass(frozen=True)
class Method:
    """What is one method's own."""

    stage: str
    estimate: Callable[[Rollout, Any], Tensor]  # (rollout, config) -> (B,) advantages of its responses
    loss: Callable[..., tuple[Tensor, Line]]  # (logprobs, some, advantages, config) -> the loss, what is logged with it


def learn_in_groups(
    method: Method, policy: Path, reward: Sequence[str], prompts: tuple[Path, ...], out: Path, corpus: tuple[Path, ...],
    judge: str | None, config: GroupConfig,
) -> None:  # fmt: skip
    """One run: the method's policy, trained against the reward model and saved."""
    policy = find_base(policy)
    inputs: Inputs = {
        "policy": policy,
        "reward": reward_inputs(reward),
        "prompts": prompts,
        "corpus": corpus,
        "judge": one_input(judge) if judge else None,
    }
    with Run(out, stage=method.stage, config=config, inputs=inputs) as run:
        if run.finished:
            return
        actors = load_actors(policy, reward, config, run, critic=False)
        count = config.iterations * config.batch // config.samples
        asked = encode_prompts(actors, prompts, count, config, method.stage)
        learner = policy_learner(actors.policy, config)
        if corpus:
            steps = config.iterations * config.passes * -(-config.batch // config.rows)
            learner.mix = open_mix(run, actors, corpus, steps)
        held_out = load_judge(judge, policy, config, run)
        results = train(run, method, learner, actors, asked, held_out).put_back()
        save_tuned(out, learner.policy, actors.tokenizer, policy, config)
        run.finish(results | {"prompts": len(asked), "shared_layers": actors.shared_layers})


def train(
    run: Run, method: Method, learner: PolicyLearner, actors: Actors, asked: list[EncodedPrompt], judge: Reward | None
) -> KLBudget:
    """The algorithm box: k responses a prompt, scores, advantages, steps."""
    config: GroupConfig = run.config  # type: ignore[assignment]
    budget = KLBudget(run, learner, actors.tokenizer)
    for iteration in budget.iterations():
        config = replace(config, kl_coef=budget.price)
        parts = first_epoch(run, config.rows, iteration)
        rollout, gap = next_rollout(actors, asked, iteration, config, parts, config.samples)
        tied = tied_groups(rollout.scores.view(-1, config.samples))
        measured = describe(rollout, config.kl_coef) | {"tied_groups": tied, "sampler_gap": gap}
        if judge:
            measured["judge_score"] = judge_score(judge, rollout, config.missing_end)
        if budget.holds(measured, iteration):
            with budget.learning(measured, iteration):
                order = minibatch_order(run, iteration)
                budget.learnt(measured | improve(method, learner, rollout, config, order, iteration), iteration)
    return budget


def improve(
    method: Method, learner: PolicyLearner, rollout: Rollout, config: GroupConfig, order: torch.Generator,
    iteration: int,
) -> Line:  # fmt: skip
    """Steps of the policy over one rollout. Returns what to log, averaged over them."""
    advantages = method.estimate(rollout, config)
    logged: list[Line] = []
    for rows in minibatches(config.batch, config.rows, config.passes, order, advantages.device):
        some = rollout.rows(rows)
        loss = partial(method.loss, some=some, advantages=advantages[rows], config=config)
        logged.append(policy_step(learner, some, loss, config, iteration, first=not logged))
    return averaged(logged) | {"lr": learner.optimizer.param_groups[0]["lr"]}
