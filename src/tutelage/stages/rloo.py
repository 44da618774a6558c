"""A reward model's taste to a policy by REINFORCE with a leave-one-out baseline: RLOO (Ahmadian et al. 2024).

    repeat: prompts -> k sampled responses each -> reward = score - beta log(pi(y|x) / pi_SFT(y|x)), per response
            -> advantage = reward - mean reward of the prompt's other responses -> one policy step

A response is one action. There is no value network: the other responses are the baseline, which keeps the gradient
unbiased. There is no clipping: each rollout is learned from once, in one step, while the ratio is 1.
With --corpus a share of the pretraining loss is mixed in, as in PPO-ptx; the paper has none, and so has the default.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tutelage.learning.groups import leave_one_out, reinforce_loss, tied_groups
from tutelage.learning.kl import kl_per_response
from tutelage.rl.actors import Actors, encode_prompts, load_actors, next_rollout
from tutelage.rl.budget import KLBudget
from tutelage.rl.config import GroupConfig
from tutelage.rl.learner import PolicyLearner, check_ratio, policy_learner, ratio_error
from tutelage.rl.mix import open_mix
from tutelage.runs.adapter import save_tuned
from tutelage.runs.base import find_base
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run
from tutelage.sampling.rollout import Rollout, describe, response_logprobs


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupConfig):
    """One RLOO run, with PPO's defaults."""

    samples: int = 4
    """Responses per prompt; the paper has 2 and 4."""


def rloo(
    policy: Path,
    reward: Path,
    prompts: tuple[Path, ...],
    out: Path,
    corpus: tuple[Path, ...] = (),
    config: RLOOConfig = RLOOConfig(),
) -> None:
    """Optimise a policy against a reward model without a value network: REINFORCE, leave-one-out baseline.

    Example: tutelage rloo --policy runs/sft --reward runs/reward --prompts prompts.jsonl --out runs/rloo
    """
    policy = find_base(policy)
    inputs: Inputs = {"policy": policy, "reward": reward, "prompts": prompts, "corpus": corpus}
    with Run(out, stage="rloo", config=config, inputs=inputs) as run:
        if run.finished:
            return
        actors = load_actors(policy, reward, config, run, critic=False)
        count = config.iterations * config.batch // config.samples
        asked = encode_prompts(actors, prompts, count, config, "rloo")
        learner = policy_learner(actors.policy, config)
        if corpus:
            learner.mix = open_mix(run, actors, corpus, config.iterations)
        results = train(run, learner, actors, asked).put_back()
        save_tuned(out, learner.policy, actors.words, policy, config)
        run.finish(results | {"prompts": len(asked), "shared_layers": actors.shared_layers})


def train(run: Run, learner: PolicyLearner, actors: Actors, asked: list[list[int]]) -> KLBudget:
    """The algorithm box: k responses a prompt, rewards, advantages, one step."""
    config: RLOOConfig = run.config  # type: ignore[assignment]
    budget = KLBudget(run, learner)
    for iteration in budget.iterations():
        learner.set_rate(iteration, config)
        rollout, gap = next_rollout(actors, asked, iteration, config, [torch.arange(config.batch)], config.samples)
        tied = tied_groups(rollout.scores.view(-1, config.samples))
        measured = describe(rollout, config.kl_coef) | {"tied_groups": tied, "sampler_gap": gap}
        if not budget.holds(measured, iteration):
            run.log(iteration + 1, **measured)
            break
        if iteration == config.iterations:
            break
        measured |= improve(learner, rollout, estimate(rollout, config), config, iteration)
        budget.look(measured, iteration)
        rate = (iteration + 1) * config.batch / run.seconds
        run.log(iteration + 1, **measured, responses_per_second=rate)
        run.progress.update((iteration + 1) / config.iterations, score=measured["score"], kl=measured["kl"])
        budget.checkpoint(iteration)
    return budget


def estimate(rollout: Rollout, config: RLOOConfig) -> Tensor:
    """(B,) advantages of whole responses, of the score less the price of drift."""
    drift = kl_per_response(rollout.logprobs, rollout.ref_logprobs, rollout.responses.mask)
    rewards = rollout.scores - config.kl_coef * drift
    return leave_one_out(rewards.view(-1, config.samples)).flatten()


def improve(
    learner: PolicyLearner, rollout: Rollout, advantages: Tensor, config: RLOOConfig, iteration: int
) -> dict[str, float]:
    """One step on the whole rollout. Returns what to log."""
    mask = rollout.responses.mask
    logprobs = response_logprobs(learner.policy, rollout.responses, config.temperature)
    error = ratio_error(logprobs, rollout.logprobs, mask)
    check_ratio(error, learner.policy.compute_dtype)
    loss = reinforce_loss(logprobs, advantages, mask)
    logged = {"policy_loss": loss.item(), "ratio_error": error, "lr": learner.optimizer.param_groups[0]["lr"]}
    return logged | learner.step(loss, iteration, config)
