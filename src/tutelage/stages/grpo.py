"""A reward model's taste to a policy by group-relative policy optimisation: GRPO (DeepSeekMath, Shao et al. 2024).

    repeat: prompts -> k sampled responses each -> scores -> advantage = (score - group's mean) / group's deviation
            -> clipped policy steps, token by token, each with a price on the drift from the SFT policy as k3

There is no value network. `--variant dr-grpo` (Liu et al. 2025) divides neither by the deviation, which favours prompts
that are nearly all right or all wrong, nor by each response's length, which favours long wrong answers.
With --corpus a share of the pretraining loss is mixed in, as in PPO-ptx; the paper has none, and so has the default.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tutelage.learning.groups import group_relative, grpo_loss, tied_groups
from tutelage.rl.actors import Actors, encode_prompts, load_actors, next_rollout
from tutelage.rl.budget import KLBudget
from tutelage.rl.config import GroupConfig
from tutelage.rl.learner import (
    PolicyLearner,
    averaged,
    check_ratio,
    first_epoch,
    minibatch_order,
    minibatches,
    policy_learner,
    ratio_error,
)
from tutelage.rl.mix import open_mix
from tutelage.runs.adapter import save_tuned
from tutelage.runs.base import find_base
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run
from tutelage.sampling.rollout import Rollout, describe, response_logprobs


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GroupConfig):
    """One GRPO run. Defaults suit a laptop; the paper's numbers (section 4.2) stand beside them."""

    variant: Literal["grpo", "dr-grpo"] = "grpo"
    """grpo; dr-grpo, without the divisions by a group's deviation and by a response's length."""
    samples: int = 8
    """Responses per prompt; the paper has 64, of 16 prompts."""
    minibatch: int = 64
    """Responses per optimizer step."""
    epochs: int = 1
    """Passes over each rollout (paper: 1)."""
    clip: float = 0.2
    """How far the ratio may move before the policy's gradient stops; not printed in the paper."""
    kl_coef: float = 0.04
    """Weight of k3 in the loss (paper: .04; Liu et al. 2025: 0); not the beta of PPO and RLOO."""


def grpo(
    policy: Path,
    reward: Path,
    prompts: tuple[Path, ...],
    out: Path,
    corpus: tuple[Path, ...] = (),
    config: GRPOConfig = GRPOConfig(),
) -> None:
    """Optimise a policy against a reward model without a value network: GRPO, or Dr. GRPO.

    Example: tutelage grpo --policy runs/sft --reward runs/reward --prompts prompts.jsonl --out runs/grpo
    """
    policy = find_base(policy)
    inputs: Inputs = {"policy": policy, "reward": reward, "prompts": prompts, "corpus": corpus}
    with Run(out, stage="grpo", config=config, inputs=inputs) as run:
        if run.finished:
            return
        actors = load_actors(policy, reward, config, run, critic=False)
        count = config.iterations * config.batch // config.samples
        asked = encode_prompts(actors, prompts, count, config, "grpo")
        learner = policy_learner(actors.policy, config)
        if corpus:
            steps = config.iterations * config.epochs * -(-config.batch // config.minibatch)
            learner.mix = open_mix(run, actors, corpus, steps)
        results = train(run, learner, actors, asked).put_back()
        save_tuned(out, learner.policy, actors.words, policy, config)
        run.finish(results | {"prompts": len(asked), "shared_layers": actors.shared_layers})


def train(run: Run, learner: PolicyLearner, actors: Actors, asked: list[list[int]]) -> KLBudget:
    """The algorithm box: k responses a prompt, scores, advantages, epochs of minibatches."""
    config: GRPOConfig = run.config  # type: ignore[assignment]
    budget = KLBudget(run, learner)
    for iteration in budget.iterations():
        learner.set_rate(iteration, config)
        parts = first_epoch(run, config.minibatch, iteration)
        rollout, gap = next_rollout(actors, asked, iteration, config, parts, config.samples)
        tied = tied_groups(rollout.scores.view(-1, config.samples))
        measured = describe(rollout, config.kl_coef) | {"tied_groups": tied, "sampler_gap": gap}
        if not budget.holds(measured, iteration):
            run.log(iteration + 1, **measured)
            break
        if iteration == config.iterations:
            break
        order = minibatch_order(run, iteration)
        measured |= improve(learner, rollout, estimate(rollout, config), config, order, iteration)
        budget.look(measured, iteration)
        rate = (iteration + 1) * config.batch / run.seconds
        run.log(iteration + 1, **measured, responses_per_second=rate)
        run.progress.update((iteration + 1) / config.iterations, score=measured["score"], kl=measured["kl"])
        budget.checkpoint(iteration)
    return budget


def estimate(rollout: Rollout, config: GRPOConfig) -> Tensor:
    """(B,) advantages, the same for all tokens of a response; the price of drift is in the loss."""
    scores = rollout.scores.view(-1, config.samples)
    return group_relative(scores, scaled=config.variant == "grpo").flatten()


def improve(
    learner: PolicyLearner, rollout: Rollout, advantages: Tensor, config: GRPOConfig, order: torch.Generator,
    iteration: int,
) -> dict[str, float]:  # fmt: skip
    """Epochs of minibatches over one rollout. Returns what to log, averaged over the steps."""
    logged: list[dict[str, float]] = []
    for rows in minibatches(config.batch, config.minibatch, config.epochs, order, advantages.device):
        logged.append(policy_step(learner, rollout, advantages, rows, config, iteration, first=not logged))
    return averaged(logged) | {"lr": learner.optimizer.param_groups[0]["lr"]}


def policy_step(
    learner: PolicyLearner, rollout: Rollout, advantages: Tensor, rows: Tensor, config: GRPOConfig, iteration: int,
    first: bool,
) -> dict[str, float]:  # fmt: skip
    """One step of the policy on one minibatch."""
    responses = rollout.responses.rows(rows)
    wide, mask = responses.mask.shape[1], responses.mask
    old, ref = rollout.logprobs[rows, :wide], rollout.ref_logprobs[rows, :wide]
    logprobs = response_logprobs(learner.policy, responses, config.temperature)
    error = ratio_error(logprobs, old, mask)
    if first:
        check_ratio(error, learner.policy.compute_dtype)
    loss, clipped, kl = grpo_loss(
        logprobs, old, ref, advantages[rows], mask, clip=config.clip, kl_coef=config.kl_coef,
        divisor=config.max_tokens if config.variant == "dr-grpo" else None,
    )  # fmt: skip
    logged = {"policy_loss": loss.item(), "kl_loss": kl.item(), "clip_fraction": clipped.item(), "ratio_error": error}
    return logged | learner.step(loss, iteration, config)
