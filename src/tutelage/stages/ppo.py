"""PPO-ptx: optimise a policy against a reward, step 3 of InstructGPT (Ouyang et al. 2022, section 3.5, eq. 2).

    repeat: prompts -> sampled responses -> reward = score - beta KL(pi || pi_SFT), per token -> advantages
            -> clipped policy step + clipped value step + a share of the pretraining loss (the "ptx")

The value network starts as the reward model, or as the first of several. Where no reward is a model it starts as the
policy with a head of zeros. `--no-ptx` is plain PPO.
Ours, where the paper is silent: lambda .95, a penalty of 1 for a missing end of turn, advantages whitened over the
rollout, a separate optimizer for the value network; `learning/ptx.py` says how the pretraining coefficient is found.
`--update` replaces the clip: `penalty` adapts a KL penalty to the policy that sampled (Schulman et al. 2017, eq. 8),
`trpo` takes TRPO's natural-gradient step (Schulman et al. 2015). All else is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.learning.advantages import explained_variance, gae, shaped_rewards, whiten
from tutelage.learning.kl import mean_k3
from tutelage.learning.losses import policy_loss, value_loss
from tutelage.learning.optim import EMA, LearningRate, clipped_step
from tutelage.learning.optimizer import Epochs
from tutelage.learning.trust_region import adaptive_penalty_coef, penalised_loss
from tutelage.model.heads import ScalarGPT
from tutelage.options import Advanced, NonNegative, Positive, Range, Share, Size
from tutelage.rlhf.actors import Actors
from tutelage.rlhf.config import RLConfig
from tutelage.rlhf.history import Metrics
from tutelage.rlhf.learner import PolicyLearner, averaged, minibatch_order, minibatches, rl_adamw
from tutelage.rlhf.loop import TrainingLoop
from tutelage.rlhf.setup import RLInputs, Setup, open_run, set_up, with_base
from tutelage.rlhf.trust_region import trust_region_step, update_kl
from tutelage.runs.adapter import save_tuned, save_tuned_scorer
from tutelage.runs.checkpoint import load_training_state, training_state
from tutelage.sampling.rollout import Rollout, response_values


@dataclass(frozen=True, kw_only=True)
class PPOConfig(RLConfig):
    """One PPO-ptx run. Defaults suit a laptop; the paper's values (appendix C.4) stand beside them."""

    minibatch: Advanced[Size] = 64
    """Responses per optimizer step."""
    epochs: Advanced[Epochs] = 1
    """Passes over each rollout (paper: 1)."""
    value_epochs: Advanced[Annotated[int, Range(least=0, most=10_000)]] = 0
    """Passes of the value network over each rollout; 0: as many as the policy."""
    value_lr: Advanced[LearningRate] = 1e-3
    """Peak learning rate of the value network (paper: 9e-6)."""
    gamma: Advanced[Share] = 1.0
    """Discount (paper: 1)."""
    lam: Advanced[Share] = 0.95
    """GAE's lambda; not printed in the paper."""
    update: Literal["clip", "penalty", "trpo"] = "clip"
    """How the policy's step is limited: clip; penalty, an adaptive KL penalty; trpo, a natural-gradient step."""
    update_kl: Advanced[NonNegative] = 0.01
    """Nats per token that one rollout may move the policy: penalty's target (2017 paper: .003 to .03), trpo's limit."""
    clip: Advanced[Positive] = 0.2
    """Clip range of the ratio (paper: .2)."""
    value_clip: Advanced[Positive] = 0.5
    """Clip range of the values, in units of reward; .2 suits small rewards."""
    ptx: bool = True
    """Mix in the pretraining loss; --no-ptx is plain PPO."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.value_epochs < self.epochs:
            raise InputError(f"--value-epochs {self.value_epochs}: give at least --epochs {self.epochs}, or 0")
        if self.update != "clip" and not self.update_kl:
            raise InputError(f"--update {self.update} --update-kl 0: the policy could not move; give .01")
        if self.update == "trpo" and self.epochs > 1:
            raise InputError(f"--update trpo --epochs {self.epochs}: TRPO takes one step a rollout; use --value-epochs")
        if self.update == "trpo" and self.ptx:
            raise InputError("--update trpo: TRPO cannot mix in a pretraining loss; add --no-ptx")

    @property
    def algorithm(self) -> str:
        return {"clip": "PPO", "penalty": "PPO-penalty", "trpo": "TRPO"}[self.update]


@dataclass(kw_only=True)
class Learner(PolicyLearner):
    """What PPO trains: the policy and the value network."""

    value: ScalarGPT
    value_optimizer: torch.optim.Optimizer
    # of the KL to the policy that sampled, with --update penalty; the starting value has little effect
    penalty_coef: float = 1.0

    def state(self) -> dict[str, Any]:
        value = training_state(self.value, [self.value_optimizer])
        return super().state() | {"value": value, "penalty_coef": self.penalty_coef}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.penalty_coef = state["penalty_coef"]
        load_training_state(state["value"], self.value, [self.value_optimizer])


def ppo(inputs: RLInputs, config: PPOConfig = PPOConfig()) -> None:
    """Optimise a policy against a reward with PPO-ptx, under a KL penalty to the SFT policy.

    Example: tutelage ppo --policy runs/sft --reward runs/reward --prompts prompts.jsonl --corpus corpus.jsonl
    --out runs/ppo-ptx
    """
    if config.ptx and not inputs.corpus:
        raise InputError("ppo: PPO-ptx mixes in pretraining text; give --corpus FILE, or --no-ptx for plain PPO")
    inputs = with_base(inputs)
    with open_run("ppo", inputs, config) as run:
        if run.finished:
            return
        setup = set_up(run, inputs, config, minibatch=config.minibatch, epochs=config.epochs, mix=config.ptx)
        actors, learner = setup.actors, make_learner(setup.actors, config)
        learner.mix = setup.mix
        loop = train(setup, learner, config)
        results = loop.restore_best()
        save_tuned_scorer(inputs.out / "value", learner.value, actors.tokenizer, actors.value_base, config)
        save_tuned(inputs.out, learner.policy, actors.tokenizer, inputs.policy, config)
        run.finish(results | setup.results(), loop.ending())


def train(setup: Setup, learner: Learner, config: PPOConfig) -> TrainingLoop:
    """The algorithm box: roll out; estimate advantages; is it sound to learn?; improve; record."""
    loop = TrainingLoop(setup.run, config, learner, setup.actors.tokenizer)
    for iteration in loop.iterations():
        config = replace(config, kl_coef=loop.kl_coef)
        rollout, metrics = setup.roll_out(iteration, config, config.minibatch)
        advantages, returns = estimate(rollout, config)
        metrics["explained_variance"] = explained_variance(values_of(rollout), returns, rollout.responses.mask)
        if loop.should_learn(metrics, iteration):
            with loop.guarding(metrics, iteration):
                order = minibatch_order(setup.run, iteration)
                update = improve(learner, rollout, advantages, returns, config, order, iteration)
                loop.record(metrics | update, iteration)
    return loop


def values_of(rollout: Rollout) -> Tensor:
    assert rollout.values is not None, "PPO's actors have a value network"
    return rollout.values


def estimate(rollout: Rollout, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """Whitened advantages and returns, both (B, T), of the scores minus the KL penalty.

    The returns are not whitened: they are the value network's targets and stay in units of reward.
    """
    mask = rollout.responses.mask
    rewards = shaped_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, kl_coef=config.kl_coef)
    advantages, returns = gae(rewards, values_of(rollout), mask, gamma=config.gamma, lam=config.lam)
    return whiten(advantages, mask), returns


def improve(
    learner: Learner,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    config: PPOConfig,
    order: torch.Generator,
    iteration: int,
) -> Metrics:
    """Update the policy and the value network on one rollout. Returns what to log, averaged over the steps."""
    epochs = max(config.epochs, config.value_epochs)
    batches = list(minibatches(config.batch, config.minibatch, epochs, order, advantages.device))
    first_epoch = batches[: len(batches) // epochs]
    if config.update == "trpo":
        limit, temperature = config.update_kl, config.temperature
        step = trust_region_step(learner, rollout, advantages, first_epoch, limit=limit, temperature=temperature)
        return averaged([step | value_step(learner, rollout.rows(rows), returns[rows], config) for rows in batches])
    policy_steps = len(first_epoch) * config.epochs
    steps: list[Metrics] = []
    for rows in batches[:policy_steps]:
        minibatch = rollout.rows(rows)
        logprobs, ratio = learner.logprobs(minibatch, config, first=not steps)
        loss, metrics = update_loss(logprobs, minibatch, advantages[rows], config, learner.penalty_coef)
        step = ratio | metrics | learner.step(loss, iteration, config)
        steps.append(step | value_step(learner, minibatch, returns[rows], config))
    for rows in batches[policy_steps:]:
        value_step(learner, rollout.rows(rows), returns[rows], config)
    moved = adapt_penalty(learner, rollout, first_epoch, config) if config.update == "penalty" else {}
    return averaged(steps) | moved | {"lr": learner.learning_rate}


def update_loss(
    logprobs: Tensor, minibatch: Rollout, advantages: Tensor, config: PPOConfig, penalty_coef: float
) -> tuple[Tensor, Metrics]:
    """The policy's loss on a minibatch, and what to log of it; advantages (b, T) or wider."""
    mask = minibatch.responses.mask
    advantages = advantages[:, : mask.shape[1]]
    if config.update == "penalty":
        return penalised_loss(logprobs, minibatch.logprobs, advantages, mask, coef=penalty_coef), {}
    loss, clip_fraction = policy_loss(logprobs, minibatch.logprobs, advantages, mask, clip=config.clip)
    approx_kl = mean_k3(minibatch.logprobs, logprobs.detach(), mask)
    return loss, {"clip_fraction": clip_fraction.item(), "approx_kl": approx_kl.item()}


def adapt_penalty(learner: Learner, rollout: Rollout, parts: Sequence[Tensor], config: PPOConfig) -> Metrics:
    """After an update: how far it moved the policy, and from that the penalty coefficient of the next update."""
    kl, coef = update_kl(learner.policy, rollout, parts, config.temperature), learner.penalty_coef
    learner.penalty_coef = adaptive_penalty_coef(coef, kl, config.update_kl)
    return {"update_kl": kl, "penalty_coef": coef}


def value_step(learner: Learner, minibatch: Rollout, returns: Tensor, config: PPOConfig) -> Metrics:
    """One step of the value network on a minibatch; returns (b, T) or wider."""
    mask = minibatch.responses.mask
    values = response_values(learner.value, minibatch.responses)
    loss = value_loss(values, values_of(minibatch), returns[:, : mask.shape[1]], mask, clip=config.value_clip)
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
