"""The policy's optimizer step, the same for PPO, RLOO and GRPO.

    minibatch -> log-probabilities -> (the algorithm's loss) -> gradient, plus a share of the pretraining gradient
              -> clipped step of AdamW -> moving average of the weights

Before the first step of an iteration the policy is still the one that sampled. A ratio other than 1 stops the run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.learning.optim import EMA, adamw, clipped_step, set_learning_rate
from tutelage.model.gpt import GPT
from tutelage.model.parameters import trainable
from tutelage.rlhf.config import RLConfig
from tutelage.rlhf.history import Metrics
from tutelage.rlhf.pretraining_mix import PretrainingMix
from tutelage.runs.checkpoint import load_training_state, training_state
from tutelage.runs.run import Run
from tutelage.sampling.rollout import Rollout, response_logprobs


@dataclass(kw_only=True)
class PolicyLearner:
    """What training changes: the policy, its optimizer, its average, and the position in the pretraining mix."""

    policy: GPT
    optimizer: torch.optim.Optimizer
    average: EMA
    mix: PretrainingMix | None = None

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

    def set_learning_rate(self, iteration: int, config: RLConfig) -> None:
        """From a tenth of the peak to the peak over the warm-up, then constant (Ouyang et al. 2022, appendix C.4)."""
        warming = iteration < config.warmup
        set_learning_rate(self.optimizer, 0.1 + 0.9 * iteration / config.warmup if warming else 1.0)

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def logprobs(self, minibatch: Rollout, config: RLConfig, *, first: bool) -> tuple[Tensor, Metrics]:
        """log pi (b, T) of a minibatch's response tokens, and the error of their ratio to the old policy's.

        Raises TrainingError if the ratio is not 1 before the `first` step of an iteration.
        """
        logprobs = response_logprobs(self.policy, minibatch.responses, config.temperature)
        error = ratio_error(logprobs, minibatch.logprobs, minibatch.responses.mask)
        if first:
            check_ratio(error, self.policy.compute_dtype)
        return logprobs, {"ratio_error": error}

    def step(self, loss: Tensor, iteration: int, config: RLConfig) -> Metrics:
        """One step along the gradient of the loss, with the pretraining gradient added. Returns what to log."""
        loss.backward()
        metrics: Metrics = {"policy_loss": loss.item()}
        if self.mix:
            calibrate, text = iteration < config.ptx_calibration, self.mix.loss(self.policy, config.ptx_windows)
            metrics |= self.mix.share.add_gradient(self.policy.parameters(), text, calibrate)
        metrics["grad_norm"] = clipped_step([self.optimizer], self.policy.parameters(), config.grad_clip)
        self.average.update(self.policy)
        return metrics


def policy_learner(policy: GPT, config: RLConfig) -> PolicyLearner:
    return PolicyLearner(policy=policy, optimizer=rl_adamw(policy, config.lr), average=EMA(policy, config.ema))


def rl_adamw(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """AdamW without weight decay; eps is 1e-5, as in openai/lm-human-preferences."""
    return adamw(trainable(model).items(), lr=lr, weight_decay=0.0, eps=1e-5)


def ratio_error(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> float:
    """Largest |pi_new / pi_old - 1| of a response token; all (B, T)."""
    return float(torch.where(mask, ((logprobs.detach() - old_logprobs).exp() - 1).abs(), 0.0).max())


def check_ratio(error: float, dtype: torch.dtype) -> None:
    """Raises TrainingError unless the ratio is 1 up to rounding, as it must be before an iteration's first step."""
    limit = 1e-4 if dtype == torch.float32 else 5e-2
    if not error <= limit:
        raise TrainingError(
            f"policy: before the first step the ratio is off 1 by {error:.2g}, where rounding explains {limit:g}; "
            "dropout, temperature or positions differ between sampling and training: check with --dtype fp32"
        )


def minibatches(count: int, size: int, epochs: int, order: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """Row numbers of each minibatch, in a new random order each epoch; ascending within a minibatch."""
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=order).split(size):
            yield rows.sort().values.to(device)


def minibatch_order(run: Run, iteration: int) -> torch.Generator:
    """A fresh generator of the order of an iteration's minibatches."""
    return run.generator(f"minibatches/{iteration}")


def first_epoch(run: Run, count: int, size: int, iteration: int) -> list[Tensor]:
    """The minibatches of an iteration's first epoch.

    The rollout's log-probabilities are computed in the same shapes, so that the first ratio is exactly 1.
    """
    return list(minibatches(count, size, 1, minibatch_order(run, iteration), run.device.torch_device))


def averaged(steps: Sequence[Metrics]) -> Metrics:
    """Means over the steps of an iteration. The ratio's error is that of the first step, before which it must be 0."""
    mean = {key: sum(step[key] for step in steps) / len(steps) for key in steps[0]}
    return mean | {"ratio_error": steps[0]["ratio_error"]}
