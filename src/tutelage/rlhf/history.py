"""The metrics of a reinforcement-learning run that its checks read: those of its first and of its last iterations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Metrics = dict[str, float]  # of one iteration; docs/metrics.md defines the keys

PATIENCE = 5  # iterations that a condition must last: one or two are noise at a batch of 64
SHORT_PATIENCE = 2  # for conditions so far from the start that noise does not explain them
WINDOW = 2 * PATIENCE  # how far any check looks back


@dataclass(frozen=True)
class Limits:
    """The settings of a run that its checks depend on."""

    dtype: str  # torch's name of the precision
    max_tokens: int  # of a response
    ptx_share: float  # norm of the pretraining gradient relative to the policy gradient's
    algorithm: str  # its usual name: PPO, RLOO, GRPO, ...


@dataclass(frozen=True)
class History:
    """The metrics so far that a check may read."""

    limits: Limits
    opening: list[Metrics]  # the first PATIENCE iterations
    recent: list[Metrics]  # the last WINDOW
    iteration: int

    @property
    def step_option(self) -> str:
        """The option that makes steps smaller."""
        return "--update-kl" if self.limits.algorithm == "TRPO" else "--lr"

    def now(self, key: str) -> float:
        """The newest value; NaN if it was not measured, so that every comparison is false."""
        return self.recent[-1].get(key, math.nan)

    def first(self, key: str) -> float:
        """The value of the first iteration; NaN if it was not measured."""
        return self.opening[0].get(key, math.nan) if self.opening else math.nan

    def last(self, key: str, count: int = PATIENCE) -> list[float]:
        """The last `count` values; [NaN] before there are so many."""
        values = [line.get(key, math.nan) for line in self.recent[-count:]]
        return values if len(values) == count else [math.nan]

    def objectives(self, lines: Sequence[Metrics]) -> list[float]:
        """score - beta KL of each iteration; [NaN] for fewer than PATIENCE.

        beta is the KL coefficient that the run began with. With --kl-target it changes from iteration to iteration, and
        objectives at different coefficients cannot be compared.
        """
        if len(lines) < PATIENCE:
            return [math.nan]
        beta = self.first("kl_coef")
        return [line.get("score", math.nan) - beta * line.get("kl", math.nan) for line in lines]

    def lasting(self, holds: Callable[[float], bool], key: str, count: int = PATIENCE) -> bool:
        """Whether a condition on a metric held in each of the last `count` iterations."""
        return all(holds(value) for value in self.last(key, count))

    def throughout(self, unsound: Callable[[Metrics, Metrics], bool], count: int = PATIENCE) -> bool:
        """Whether a condition on (first iteration, later iteration) held in each of the last `count` iterations."""
        recent = self.recent[-count:]
        return len(recent) == count and all(unsound(self.opening[0], line) for line in recent)


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def significant(values: Sequence[float]) -> float:
    """Welch's t: by how many standard errors the mean of the second half exceeds the first's; NaN below 4 values."""
    halves = values[: len(values) // 2], values[len(values) // 2 :]
    if len(halves[0]) < 2:
        return math.nan
    spread = sum(sum((x - mean(half)) ** 2 for x in half) / (len(half) - 1) / len(half) for half in halves)
    return (mean(halves[1]) - mean(halves[0])) / math.sqrt(max(spread, 1e-12))
