"""A reward model's taste to a policy: step 3 of InstructGPT, PPO-ptx (Ouyang et al. 2022, section 3.5, eq. 2).

    repeat: prompts -> sampled responses -> score - beta KL(pi || pi_SFT) per token -> advantages
            -> clipped policy step + clipped value step + a share of the pretraining loss, the "ptx"

The value network starts as the reward model, the first of several, and has an optimizer of its own; where no reward is
a model it starts as the policy with a head of zeros. `--no-ptx` is plain PPO. Where the paper is silent: lambda .95,
score -1 without an end of turn, advantages whitened over the rollout; how the pretraining coefficient is found,
`learning/ptx.py` says.
`--update` has two others in the clip's place: an adapted price on the KL to the policy that sampled (Schulman et al.
2017, eq. 8), and TRPO's natural-gradient step (2015). All else is the same: rollouts, rewards, value network, leash.
Each rollout is checked before it is learnt from: the ratio of the first minibatch must be 1, the drift from the SFT
policy stays within a budget of nats per response, and a gradient that is not finite ends the run. What else is wrong
with the curves, `rlhf/monitor.py` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.learning.advantages import explained_variance, gae, shaped_rewards, whiten
from tutelage.learning.kl import mean_k3
from tutelage.learning.losses import policy_loss, value_loss
from tutelage.learning.optim import EMA, clipped_step
from tutelage.learning.trust_region import adaptive_penalty_coef, penalised_loss
from tutelage.model.heads import ScalarGPT
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
from tutelage.rlhf.config import RLConfig
from tutelage.rlhf.history import Line
from tutelage.rlhf.learner import (
    PolicyLearner,
    averaged,
    first_epoch,
    minibatch_order,
    minibatches,
    policy_step,
    rl_adamw,
)
from tutelage.rlhf.loop import KLBudget
from tutelage.rlhf.pretraining_mix import open_mix
from tutelage.rlhf.trust_region import trust_region_step, update_kl
from tutelage.runs.adapter import save_tuned, save_tuned_scorer
from tutelage.runs.base import find_base
from tutelage.runs.checkpoint import load_training_state, training_state
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run
from tutelage.sampling.rollout import Rollout, describe, response_values


@dataclass(frozen=True, kw_only=True)
class PPOConfig(RLConfig):
    """One PPO-ptx run. Defaults suit a laptop; the paper's numbers (appendix C.4) stand beside them."""

    minibatch: int = 64
    """Responses per optimizer step."""
    epochs: int = 1
    """Passes over each rollout (paper: 1)."""
    value_epochs: int = 0
    """Passes of the value network, where it should have more than the policy; 0 is as many."""
    value_lr: float = 1e-3
    """Peak rate of the value network's AdamW; 9e-6 in the paper."""
    gamma: float = 1.0
    """Discount (paper: 1)."""
    lam: float = 0.95
    """GAE's lambda; not printed in the paper."""
    update: Literal["clip", "penalty", "trpo"] = "clip"
    """clip; penalty, an adapted price on the KL to the policy that sampled; trpo, one natural step, without a rate."""
    update_kl: float = 0.01
    """Nats a token by which a rollout moves the policy: penalty's target (2017 paper: .003 to .03), trpo's limit."""
    clip: float = 0.2
    """How far the ratio may move before the policy's gradient stops (paper: .2)."""
    value_clip: float = 0.5
    """The same for values, in units of reward; .2 where rewards are small."""
    ptx: bool = True
    """Mix in the pretraining loss; without it this is plain PPO."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "lam"):
            if getattr(self, name) > 1:
                raise InputError(f"--{name} {getattr(self, name):g}: must be at most 1")
        if 0 < self.value_epochs < self.epochs:
            raise InputError(f"--value-epochs {self.value_epochs}: at least the policy's --epochs {self.epochs}, or 0")
        if self.update != "clip" and not self.update_kl:
            raise InputError(f"--update {self.update} --update-kl 0: the policy could never move; give .01")
        if self.update == "trpo" and self.epochs > 1:
            raise InputError(f"--update trpo --epochs {self.epochs}: it takes one step a rollout; give --value-epochs")
        if self.update == "trpo" and self.ptx:
            raise InputError("--update trpo: its step is one within the KL of a rollout, not of text; add --no-ptx")

    @property
    def algorithm(self) -> str:
        return {"clip": "PPO", "penalty": "PPO-penalty", "trpo": "TRPO"}[self.update]


@dataclass(kw_only=True)
class Learner(PolicyLearner):
    """What changes while PPO runs."""

    value: ScalarGPT
    value_optimizer: torch.optim.Optimizer
    penalty: float = 1.0  # coefficient of the KL to the policy that sampled; where it begins hardly matters

    def state(self) -> dict[str, Any]:
        value = training_state(self.value, [self.value_optimizer])
        return super().state() | {"value": value, "penalty": self.penalty}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.penalty = state["penalty"]
        load_training_state(state["value"], self.value, [self.value_optimizer])


def ppo(
    policy: Path,
    reward: tuple[str, ...],
    prompts: tuple[Path, ...],
    out: Path,
    corpus: tuple[Path, ...] = (),
    judge: str | None = None,
    config: PPOConfig = PPOConfig(),
) -> None:
    """Optimise a policy against a reward model, held to where it came from.

    A second reward, the judge, is never learnt from; a run that it comes to dislike is stopped. A demo's panel.json
    judges by gold.

    reward: a run, FILE.py:FUNCTION, module:FUNCTION, or a scorer's URL; several are an ensemble.

    Example: tutelage ppo --policy runs/sft --reward runs/reward --prompts prompts.jsonl --corpus corpus.jsonl
    --out runs/ppo-ptx
    """
    if config.ptx and not corpus:
        raise InputError("ppo: PPO-ptx mixes in pretraining text; give --corpus FILE, or --no-ptx for plain PPO")
    policy = find_base(policy)
    inputs: Inputs = {
        "policy": policy,
        "reward": reward_inputs(reward),
        "prompts": prompts,
        "corpus": corpus,
        "judge": one_input(judge) if judge else None,
    }
    with Run(out, stage="ppo", config=config, inputs=inputs) as run:
        if run.finished:
            return
        actors = load_actors(policy, reward, config, run)
        asked = encode_prompts(actors, prompts, config.iterations * config.batch, config, "ppo")
        learner = make_learner(actors, config)
        if config.ptx:
            steps = config.iterations * config.epochs * -(-config.batch // config.minibatch)
            learner.mix = open_mix(run, actors, corpus, steps)
        results = train(run, learner, actors, asked, load_judge(judge, policy, config, run)).put_back()
        save_tuned_scorer(out / "value", learner.value, actors.tokenizer, actors.value_base, config)
        save_tuned(out, learner.policy, actors.tokenizer, policy, config)
        run.finish(results | {"prompts": len(asked), "shared_layers": actors.shared_layers})


def train(
    run: Run, learner: Learner, actors: Actors, asked: list[EncodedPrompt], judge: Reward | None = None
) -> KLBudget:
    """The algorithm box: roll out, shape rewards, estimate advantages, improve."""
    config: PPOConfig = run.config  # type: ignore[assignment]
    budget = KLBudget(run, learner, actors.tokenizer)
    for iteration in budget.iterations():
        config = replace(config, kl_coef=budget.price)
        parts = first_epoch(run, config.minibatch, iteration)
        rollout, gap = next_rollout(actors, asked, iteration, config, parts)
        advantages, returns = estimate(rollout, config)
        variance = explained_variance(values_of(rollout), returns, rollout.responses.mask)
        measured = describe(rollout, config.kl_coef) | {"explained_variance": variance, "sampler_gap": gap}
        if judge:
            measured["judge_score"] = judge_score(judge, rollout, config.missing_end)
        if budget.holds(measured, iteration):
            with budget.learning(measured, iteration):
                order = minibatch_order(run, iteration)
                learnt = improve(learner, rollout, advantages, returns, config, order, iteration)
                budget.learnt(measured | learnt, iteration)
    return budget


def values_of(rollout: Rollout) -> Tensor:
    assert rollout.values is not None, "PPO's actors have a value network"
    return rollout.values


def estimate(rollout: Rollout, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """Whitened advantages and returns (B, T) of the score less the price of drift; the returns stay in its units."""
    mask = rollout.responses.mask
    rewards = shaped_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, kl_coef=config.kl_coef)
    advantages, returns = gae(rewards, values_of(rollout), mask, gamma=config.gamma, lam=config.lam)
    return whiten(advantages, mask), returns


def improve(
    learner: Learner, rollout: Rollout, advantages: Tensor, returns: Tensor, config: PPOConfig,
    order: torch.Generator, iteration: int,
) -> Line:  # fmt: skip
    """The policy's update and the value network's over one rollout. Returns what to log, averaged over the steps."""
    passes = max(config.epochs, config.value_epochs)
    every = list(minibatches(config.batch, config.minibatch, passes, order, advantages.device))
    parts = every[: len(every) // passes]
    if config.update == "trpo":
        limit, temperature = config.update_kl, config.temperature
        step = trust_region_step(learner, rollout, advantages, parts, limit=limit, temperature=temperature)
        return averaged([step | value_step(learner, rollout.rows(rows), returns[rows], config) for rows in every])
    logged: list[Line] = []
    for rows in every[: len(parts) * config.epochs]:
        some = rollout.rows(rows)
        loss = partial(update_loss, some=some, advantages=advantages[rows], config=config, coef=learner.penalty)
        step = policy_step(learner, some, loss, config, iteration, first=not logged)
        logged.append(step | value_step(learner, some, returns[rows], config))
    for rows in every[len(parts) * config.epochs :]:
        value_step(learner, rollout.rows(rows), returns[rows], config)
    moved = adapt_penalty(learner, rollout, parts, config) if config.update == "penalty" else {}
    return averaged(logged) | moved | {"lr": learner.optimizer.param_groups[0]["lr"]}


def update_loss(
    logprobs: Tensor, some: Rollout, advantages: Tensor, config: PPOConfig, coef: float
) -> tuple[Tensor, Line]:
    """The policy's loss on some rows of a rollout, and what is logged of it; advantages (b, T) or wider."""
    mask = some.responses.mask
    advantages = advantages[:, : mask.shape[1]]
    if config.update == "penalty":
        return penalised_loss(logprobs, some.logprobs, advantages, mask, coef=coef), {}
    loss, clipped = policy_loss(logprobs, some.logprobs, advantages, mask, clip=config.clip)
    moved = mean_k3(some.logprobs, logprobs.detach(), mask)
    return loss, {"clip_fraction": clipped.item(), "approx_kl": moved.item()}


def adapt_penalty(learner: Learner, rollout: Rollout, parts: Sequence[Tensor], config: PPOConfig) -> Line:
    """After an update: how far it has moved the policy, and the price that the next one pays for it."""
    kl, paid = update_kl(learner.policy, rollout, parts, config.temperature), learner.penalty
    learner.penalty = adaptive_penalty_coef(paid, kl, config.update_kl)
    return {"update_kl": kl, "penalty_coef": paid}


def value_step(learner: Learner, some: Rollout, returns: Tensor, config: PPOConfig) -> Line:
    """One step of the value network on some rows of a rollout; returns (b, T) or wider."""
    mask = some.responses.mask
    values = response_values(learner.value, some.responses)
    loss = value_loss(values, values_of(some), returns[:, : mask.shape[1]], mask, clip=config.value_clip)
    loss.backward()
    clipped_step([learner.value_optimizer], learner.value.parameters(), config.grad_clip)
    return {"value_loss": loss.item()}


def make_learner(actors: Actors, config: PPOConfig) -> Learner:
    policy, value = actors.policy, actors.value
    assert value, "PPO's actors have a value network"
    return Learner(
        policy=policy,
        optimizer=rl_adamw(policy, config.lr),
        average=EMA(policy, config.ema),
        value=value,
        value_optimizer=rl_adamw(value, config.value_lr),
    )
