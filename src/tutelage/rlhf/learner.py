"""The policy while it learns: what PPO, RLOO and GRPO do alike with a minibatch of a rollout and a loss of its tokens.

    log-probabilities -> loss -> gradient, with a share of the pretraining gradient -> clipped step of AdamW -> average

Before the first step of an iteration the policy is the one that sampled: a ratio off 1 stops the run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.learning.optim import EMA, adamw, clipped_step, set_learning_rate
from tutelage.model.gpt import GPT
from tutelage.model.parameters import trainable
from tutelage.rlhf.config import RLConfig
from tutelage.rlhf.history import Line
from tutelage.rlhf.pretraining_mix import PretrainingMix
from tutelage.runs.checkpoint import load_training_state, training_state
from tutelage.runs.run import Run
from tutelage.sampling.rollout import Rollout, response_logprobs


@dataclass(kw_only=True)
class PolicyLearner:
    """What changes while a policy learns."""

    policy: GPT
    optimizer: torch.optim.Optimizer
    average: EMA
    mix: PretrainingMix | None = None  # None: no pretraining text is mixed in

    def state(self) -> dict[str, Any]:
        return {
            "policy": training_state(self.policy, [self.optimizer]),
            "average": dict(self.average.weights),
            "mix": self.mix.state() if self.mix else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        load_training_state(state["policy"], self.policy, [self.optimizer])
        self.average.load(state["average"])
        if self.mix:
            self.mix.load(state["mix"])

    def set_rate(self, iteration: int, config: RLConfig) -> None:
        """Rise from a tenth of the peak over the warm-up, then constant (Ouyang et al. 2022, appendix C.4)."""
        set_learning_rate(self.optimizer, min(1.0, 0.1 + 0.9 * iteration / max(1, config.warmup)))

    def step(self, loss: Tensor, iteration: int, config: RLConfig) -> Line:
        """One step along the loss's gradient, with the pretraining gradient added. Returns what to log."""
        loss.backward()
        logged: Line = {}
        if self.mix:
            calibrate, text = iteration < config.ptx_calibration, self.mix.loss(self.policy, config.ptx_windows)
            logged |= self.mix.share.add_gradient(self.policy.parameters(), text, calibrate)
        logged["grad_norm"] = clipped_step([self.optimizer], self.policy.parameters(), config.grad_clip)
        self.average.update(self.policy)
        return logged


def policy_step(
    learner: PolicyLearner, some: Rollout, loss_of: Callable[[Tensor], tuple[Tensor, Line]], config: RLConfig,
    iteration: int, first: bool,
) -> Line:  # fmt: skip
    """One step of the policy on some rows of a rollout, the first of its iteration or a later one.

    loss_of takes log pi (b, T) of their tokens and gives the loss, and what is to be logged beside it.
    """
    logprobs = response_logprobs(learner.policy, some.responses, config.temperature)
    error = ratio_error(logprobs, some.logprobs, some.responses.mask)
    if first:
        check_ratio(error, learner.policy.compute_dtype)
    loss, logged = loss_of(logprobs)
    return {"policy_loss": loss.item(), "ratio_error": error} | logged | learner.step(loss, iteration, config)


def policy_learner(policy: GPT, config: RLConfig) -> PolicyLearner:
    return PolicyLearner(policy=policy, optimizer=rl_adamw(policy, config.lr), average=EMA(policy, config.ema))


def rl_adamw(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """AdamW with eps 1e-5, as RLHF has used since lm-human-preferences; no weight decay."""
    return adamw(trainable(model).items(), lr=lr, weight_decay=0.0, eps=1e-5)


def ratio_error(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> float:
    """Largest distance from 1 of new over old probability, all (B, T)."""
    return float(torch.where(mask, ((logprobs.detach() - old_logprobs).exp() - 1).abs(), 0.0).max())


def check_ratio(error: float, dtype: torch.dtype) -> None:
    """Before the first step of an iteration old and new policy are the same: anything but ratio 1 is a bug upstream."""
    limit = 1e-4 if dtype == torch.float32 else 5e-2
    if not error <= limit:
        raise TrainingError(
            f"policy: before the first step the ratio is off 1 by {error:.2g}, at most {limit:g} is rounding; "
            "dropout, another temperature or other positions are at work: run with --dtype fp32 to tell"
        )


def minibatches(count: int, size: int, epochs: int, order: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """Row numbers, `size` at a time, in a new random order each epoch; ascending within a minibatch."""
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=order).split(size):
            yield rows.sort().values.to(device)


def minibatch_order(run: Run, iteration: int) -> torch.Generator:
    """The chance that puts an iteration's minibatches together, from its beginning each time."""
    return run.generator(f"minibatches/{iteration}")


def first_epoch(run: Run, size: int, iteration: int) -> list[Tensor]:
    """The minibatches that an iteration begins with: what their ratios compare with is computed in the same shapes."""
    config: RLConfig = run.config  # type: ignore[assignment]
    order = minibatch_order(run, iteration)
    return list(minibatches(config.batch, size, 1, order, run.device.torch_device))


def averaged(logged: Sequence[Line]) -> Line:
    """Means over the steps of an iteration; the ratio's error is the first step's, before which it must be 0."""
    mean = {key: sum(step[key] for step in logged) / len(logged) for key in logged[0]}
    return mean | {"ratio_error": logged[0]["ratio_error"]}
