"""One optimizer step as every supervised stage takes it, and the settings that describe it.

    loss -> gradient, its norm clipped -> AdamW (pretrain: and Muon) at the learning rate of this step -> weights

The learning rate follows `optim.py:warmup_cosine` over a number of steps that is known in advance.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tutelage.learning.optim import LearningRate, adamw, clipped_step, set_learning_rate, warmup_cosine
from tutelage.options import Advanced, Positive, Range, Share

Epochs = Annotated[int, Range(least=1, most=10_000)]
WeightDecay = Annotated[float, Range(least=0, most=10)]  # at 10 and the largest learning rate no weight survives a step


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer's settings, shared by pretrain, sft, reward, dpo and kto; each has its own defaults."""

    lr: LearningRate = 2e-4
    """Peak learning rate of AdamW."""
    weight_decay: Advanced[WeightDecay] = 0.0
    """Decoupled weight decay of the matrices. The fine-tuning papers give no value."""
    warmup: Advanced[Share] = 0.1
    """Share of the steps over which the learning rate rises linearly."""
    floor: Advanced[Share] = 0.1
    """The cosine schedule ends at this share of the peak learning rate (GPT-3, InstructGPT: 0.1)."""
    clip: Advanced[Positive] = 1.0
    """Maximum gradient norm (GPT-3: 1)."""


class ScheduledOptimizer:
    """Optimizers that share one schedule and one clipped gradient over a fixed number of steps."""

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: Sequence[Tensor],
        config: OptimizerConfig,
        steps: int,
    ):
        self.optimizers, self.parameters = optimizers, parameters
        self.config, self.steps = config, steps

    def step(self, loss: Tensor, step: int) -> tuple[float, float]:
        """Take step number `step` (0 .. steps-1) down the gradient of `loss`.

        Returns AdamW's learning rate in this step and the gradient's norm before clipping. Raises TrainingError, before
        any weight changes, if the gradient is not finite.
        """
        warmup = math.ceil(self.config.warmup * self.steps)
        factor = warmup_cosine(step, steps=self.steps, warmup=warmup, floor=self.config.floor)
        for optimizer in self.optimizers:
            set_learning_rate(optimizer, factor)
        loss.backward()
        norm = clipped_step(self.optimizers, self.parameters, self.config.clip)
        return self.optimizers[-1].param_groups[0]["lr"], norm


def scheduled_adamw(parameters: Mapping[str, Tensor], config: OptimizerConfig, steps: int) -> ScheduledOptimizer:
    """AdamW over named parameters, with the config's schedule and clipping."""
    optimizer = adamw(parameters.items(), lr=config.lr, weight_decay=config.weight_decay)
    return ScheduledOptimizer([optimizer], list(parameters.values()), config, steps)
