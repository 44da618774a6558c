"""A reward model's taste to a policy: step 3 of InstructGPT, PPO-ptx (Ouyang et al. 2022, section 3.5, eq. 2).

    repeat: prompts -> sampled responses -> score - beta KL(pi || pi_SFT) per token -> advantages
            -> clipped policy step + clipped value step + a share of the pretraining loss, the "ptx"

The value network starts as the reward model and has an optimizer of its own. `--no-ptx` is plain PPO. Where the paper
is silent: lambda .95, score -1 without an end of turn, advantages whitened over the rollout; how the
pretraining coefficient is found, `learning/ptx.py` says.
Each rollout is checked before it is learnt from: the ratio of the first minibatch must be 1, the drift from the SFT
policy stays within a budget of nats per response, and a gradient that is not finite stops the run.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.data.prompts import check_room, choose_fitting, text_length
from tutelage.data.records import read_prompts
from tutelage.errors import InputError
from tutelage.learning.advantages import gae, shaped_rewards, whiten
from tutelage.learning.losses import policy_loss, value_loss
from tutelage.learning.optim import EMA, adamw, clipped_step, set_learning_rate
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import trainable
from tutelage.rl.actors import Actors, load_actors, roll_out, rollout_seeds
from tutelage.rl.mix import PretrainingMix, read_mix
from tutelage.runs.adapter import AdapterConfig, save_tuned, save_tuned_scorer
from tutelage.runs.base import find_base
from tutelage.runs.checkpoint import load_training_state, training_state
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import Rollout, describe, response_logprobs, response_values
from tutelage.text.chat import encode_chat


@dataclass(frozen=True, kw_only=True)
class PPOConfig(AdapterConfig):
    """One PPO-ptx run. Defaults suit a laptop; the paper's numbers (appendix C.4) stand beside them."""

    iterations: int = 30
    """Rollouts; the paper has 500."""
    batch: int = 64
    """Responses per rollout; the paper has 512."""
    minibatch: int = 64
    """Responses per optimizer step."""
    epochs: int = 1
    """Passes over each rollout (paper: 1)."""
    value_epochs: int = 0
    """Passes of the value network, where it should have more than the policy; 0 is as many."""
    max_tokens: int = 40
    """Longest response in tokens."""
    max_prompt: int = 64
    """Longest prompt in tokens; older turns are dropped until it fits."""
    temperature: float = 1.0
    """Of the sampled responses and of every log-probability."""
    lr: float = 2e-4
    """Peak rate of the policy's AdamW, for a few million parameters; the paper sweeps 2.55e-6 to 2.55e-5 at 1.3B."""
    value_lr: float = 1e-3
    """Peak rate of the value network's AdamW; 9e-6 in the paper."""
    warmup: int = 5
    """Iterations in which the policy's rate rises from a tenth; 10 in the paper. Constant afterwards."""
    kl_coef: float = 0.02
    """Price of one nat of drift from the SFT policy: beta in eq. 2 (paper: .02)."""
    kl_budget: float = 8.0
    """Nats per response at which training stops; the last policy within it is kept."""
    gamma: float = 1.0
    """Discount (paper: 1)."""
    lam: float = 0.95
    """GAE's lambda; not printed in the paper."""
    clip: float = 0.2
    """How far the ratio may move before the policy's gradient stops (paper: .2)."""
    value_clip: float = 0.5
    """The same for values, in units of reward; .2 where rewards are small."""
    missing_end: float = -1.0
    """Score of a response without an end of turn; demonstrations score 0."""
    grad_clip: float = 1.0
    """Largest gradient norm of either network."""
    ema: float = 0.9
    """Decay per step of the averaged policy that is saved; .992 in the paper, over 4,000 steps."""
    ptx: bool = True
    """Mix in the pretraining loss; without it this is plain PPO."""
    ptx_windows: int = 16
    """Pretraining windows per minibatch; the paper has 8 per response."""
    ptx_window: int = 0
    """Tokens of such a window; 0 is the model's whole context, or 512 of it."""
    ptx_share: float = 1.0
    """Length of the pretraining gradient, PPO's being 1."""
    ptx_calibration: int = 5
    """Iterations over which the coefficient makes it so; fixed afterwards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.value_epochs < self.epochs:
            raise InputError(f"--value-epochs {self.value_epochs}: at least the policy's --epochs {self.epochs}, or 0")


@dataclass
class Learner:
    """What changes while PPO runs."""

    policy: GPT
    value: ScalarGPT
    policy_optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer
    average: EMA
    mix: PretrainingMix | None = None  # None is plain PPO

    def state(self) -> dict[str, Any]:
        return {
            "policy": training_state(self.policy, [self.policy_optimizer]),
            "value": training_state(self.value, [self.value_optimizer]),
            "average": dict(self.average.weights),
            "mix": self.mix.state() if self.mix else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        load_training_state(state["policy"], self.policy, [self.policy_optimizer])
        load_training_state(state["value"], self.value, [self.value_optimizer])
        self.average.load(state["average"])
        if self.mix:
            self.mix.load(state["mix"])


def ppo(
    policy: Path,
    reward: Path,
    prompts: tuple[Path, ...],
    out: Path,
    corpus: tuple[Path, ...] = (),
    config: PPOConfig = PPOConfig(),
) -> None:
    """Optimise a policy against a reward model, held to where it came from.

    Example: tutelage ppo --policy runs/sft --reward runs/reward --prompts prompts.jsonl --corpus corpus.jsonl
    --out runs/ppo-ptx
    """
    if config.ptx and not corpus:
        raise InputError("ppo: PPO-ptx mixes in pretraining text; give --corpus FILE, or --no-ptx for plain PPO")
    if config.lora_dropout:
        raise InputError("ppo: --lora-dropout would move the ratio off 1 before the first step; leave it out")
    policy = find_base(policy)
    inputs: Inputs = {"policy": policy, "reward": reward, "prompts": prompts, "corpus": corpus}
    with Run(out, stage="ppo", config=config, inputs=inputs) as run:
        if run.finished:
            return
        actors = load_actors(policy, reward, config, run)
        words, context = actors.words, actors.policy.config.context
        check_room(context, config.max_prompt, config.max_tokens)
        pool = choose_fitting(read_prompts(prompts), words, config.iterations * config.batch, config.max_prompt, "ppo")
        asked = [encode_chat(words, p.prompt, add_generation_prompt=True).ids for p in pool]
        learner = make_learner(actors, config)
        if config.ptx:
            length = text_length(config.ptx_window, context, "--ptx-window")
            steps = config.iterations * config.epochs * -(-config.batch // config.minibatch)
            used, generator = steps * config.ptx_windows, run.generator("mix")
            learner.mix = read_mix(words, corpus, length, used, config.ptx_share, generator, run.device.torch_device)
        results = train(run, learner, actors, asked)
        learner.policy.load_state_dict(learner.policy.state_dict() | results.pop("weights"))
        save_tuned_scorer(out / "value", learner.value, words, actors.value_base, config)
        save_tuned(out, learner.policy, words, policy, config)
        run.finish(results | {"prompts": len(asked), "shared_layers": actors.shared_layers})


def train(run: Run, learner: Learner, actors: Actors, asked: list[list[int]]) -> dict[str, Any]:
    """The algorithm box: roll out, shape rewards, estimate advantages, improve. Returns the weights to keep."""
    config: PPOConfig = run.config  # type: ignore[assignment]
    sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=config.temperature)
    first, kept, stopped = 0, dict(learner.average.weights), None
    if state := run.restore():
        learner.load(state["learner"])
        first, kept = state["step"], state["kept"]
    for iteration in range(first, config.iterations + 1):
        set_rates(learner, iteration, config)
        prompts = [asked[(iteration * config.batch + i) % len(asked)] for i in range(config.batch)]
        seeds = rollout_seeds(config.seed, iteration, config.batch)
        parts = minibatches(config, run_generator(config.seed, f"minibatches/{iteration}"))
        rollout, gap = roll_out(actors, prompts, seeds, sampling, config.missing_end, parts)
        advantages, returns = estimate(rollout, config)
        measured = describe(rollout, returns, config.kl_coef) | {"sampler_gap": gap}
        if measured["kl"] > config.kl_budget:
            stopped = f"KL {measured['kl']:.1f} exceeded the budget of {config.kl_budget} nats at iteration {iteration}"
            run.progress.say(f"{run.out}: {stopped}; the policy before it is kept")
            run.log(iteration + 1, **measured)
            break
        kept = {name: weight.clone() for name, weight in learner.average.weights.items()}
        if iteration == config.iterations:
            break  # one rollout more than is learnt from: the last step, too, is held to the budget
        order = run_generator(config.seed, f"minibatches/{iteration}")
        measured |= improve(learner, rollout, advantages, returns, config, order, iteration)
        rate = (iteration + 1) * config.batch / run.seconds
        run.log(iteration + 1, **measured, responses_per_second=rate)
        run.progress.update((iteration + 1) / config.iterations, score=measured["score"], kl=measured["kl"])
        run.checkpoint(iteration + 1, partial(snapshot, learner, kept))
    return {"weights": kept, "ptx_coef": learner.mix.share.coefficient if learner.mix else 0.0, "stopped": stopped}


def snapshot(learner: Learner, kept: dict[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint holds: the learner, and the averaged policy that was within the KL budget last."""
    return {"learner": learner.state(), "kept": kept}


def estimate(rollout: Rollout, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """Whitened advantages and returns (B, T) of the score less the price of drift; the returns stay in its units."""
    mask = rollout.responses.mask
    rewards = shaped_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, kl_coef=config.kl_coef)
    advantages, returns = gae(rewards, rollout.values, mask, gamma=config.gamma, lam=config.lam)
    return whiten(advantages, mask), returns


def improve(
    learner: Learner, rollout: Rollout, advantages: Tensor, returns: Tensor, config: PPOConfig,
    order: torch.Generator, iteration: int,
) -> dict[str, float]:  # fmt: skip
    """Epochs of minibatches over one rollout. Returns what to log, averaged over the steps."""
    logged: list[dict[str, float]] = []
    for _ in range(config.epochs):
        for rows in minibatches(config, order):
            rows = rows.to(advantages.device)
            step = policy_step(learner, rollout, advantages, rows, config, iteration, first=not logged)
            step |= value_step(learner, rollout, returns, rows, config)
            logged.append(step)
    for _ in range(config.value_epochs - config.epochs):
        for rows in minibatches(config, order):
            value_step(learner, rollout, returns, rows.to(returns.device), config)
    mean = {key: sum(step[key] for step in logged) / len(logged) for key in logged[0]}
    return mean | {"ratio_error": logged[0]["ratio_error"], "lr": learner.policy_optimizer.param_groups[0]["lr"]}


def minibatches(config: PPOConfig, order: torch.Generator) -> list[Tensor]:
    """One epoch's: row numbers of the rollout, in a random partition."""
    return [rows.sort().values for rows in torch.randperm(config.batch, generator=order).split(config.minibatch)]


def policy_step(
    learner: Learner, rollout: Rollout, advantages: Tensor, rows: Tensor, config: PPOConfig, iteration: int,
    first: bool,
) -> dict[str, float]:  # fmt: skip
    """One step of the policy on one minibatch, with the pretraining gradient added to PPO's."""
    responses = rollout.responses.rows(rows)
    wide = responses.mask.shape[1]
    old, mask = rollout.logprobs[rows, :wide], responses.mask
    logprobs = response_logprobs(learner.policy, responses, config.temperature)
    ratio_error = float(torch.where(mask, ((logprobs.detach() - old).exp() - 1).abs(), 0.0).max())
    if first:
        check_ratio(ratio_error, learner.policy.compute_dtype)
    loss, clipped = policy_loss(logprobs, old, advantages[rows, :wide], mask, clip=config.clip)
    loss.backward()
    logged = {"policy_loss": loss.item(), "clip_fraction": clipped.item(), "ratio_error": ratio_error}
    if learner.mix:
        calibrate, loss = iteration < config.ptx_calibration, learner.mix.loss(learner.policy, config.ptx_windows)
        logged |= learner.mix.share.add_gradient(learner.policy.parameters(), loss, calibrate)
    logged["grad_norm"] = clipped_step([learner.policy_optimizer], learner.policy.parameters(), config.grad_clip)
    learner.average.update(learner.policy)
    return logged


def value_step(
    learner: Learner, rollout: Rollout, returns: Tensor, rows: Tensor, config: PPOConfig
) -> dict[str, float]:
    """One step of the value network on one minibatch."""
    responses = rollout.responses.rows(rows)
    wide = responses.mask.shape[1]
    values = response_values(learner.value, responses)
    loss = value_loss(values, rollout.values[rows, :wide], returns[rows, :wide], responses.mask, clip=config.value_clip)
    loss.backward()
    clipped_step([learner.value_optimizer], learner.value.parameters(), config.grad_clip)
    return {"value_loss": loss.item()}


def check_ratio(error: float, dtype: torch.dtype) -> None:
    """Before the first step of an iteration old and new policy are the same: anything but ratio 1 is a bug upstream."""
    limit = 1e-4 if dtype == torch.float32 else 5e-2
    if not error <= limit:
        raise InputError(
            f"ppo: before the first step the ratio is off 1 by {error:.2g}, at most {limit:g} is rounding; "
            "dropout, another temperature or other positions are at work: run with --dtype fp32 to tell"
        )


def set_rates(learner: Learner, iteration: int, config: PPOConfig) -> None:
    """Rise from a tenth of the peak over the warm-up, then constant (Ouyang et al. 2022, appendix C.4).

    Only the policy's: the value network has first to learn what a prefix is worth, and the sooner the better.
    """
    set_learning_rate(learner.policy_optimizer, min(1.0, 0.1 + 0.9 * iteration / max(1, config.warmup)))


def make_learner(actors: Actors, config: PPOConfig) -> Learner:
    """Two AdamW with eps 1e-5, as RLHF has used since lm-human-preferences; no weight decay."""
    policy, value = actors.policy, actors.value
    return Learner(
        policy=policy,
        value=value,
        policy_optimizer=adamw(trainable(policy).items(), lr=config.lr, weight_decay=0.0, eps=1e-5),
        value_optimizer=adamw(trainable(value).items(), lr=config.value_lr, weight_decay=0.0, eps=1e-5),
        average=EMA(policy, config.ema),
    )


def run_generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, purpose))
