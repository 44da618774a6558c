"""What has been measured of a reinforcement-learning run, as far as its checks may ask: its start and its end."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Line = dict[str, float]  # what is measured of one iteration: the keys of docs/metrics.md

PATIENCE = 5  # "several" iterations: one or two are noise at a batch of 64
WINDOW = 2 * PATIENCE  # how far any check looks back


@dataclass(frozen=True)
class Limits:
    """What the checks have to know of the run's settings."""

    dtype: str  # torch's name of the precision
    longest: int  # tokens of a response
    share: float  # length that the pretraining gradient is to have, the policy gradient's being 1
    algorithm: str  # as people say it: PPO, RLOO, GRPO, ...


@dataclass(frozen=True)
class History:
    """What has been measured so far, as far as a check may ask for it."""

    limits: Limits
    opening: list[Line]  # the first PATIENCE iterations
    recent: list[Line]  # the last WINDOW
    iteration: int

    @property
    def rate(self) -> str:
        """The option that makes steps smaller."""
        return "--update-kl" if self.limits.algorithm == "TRPO" else "--lr"

    def now(self, key: str) -> float:
        """NaN where it is not measured, which no comparison holds for."""
        return self.recent[-1].get(key, math.nan)

    def first(self, key: str) -> float:
        return self.opening[0].get(key, math.nan)

    def last(self, key: str, count: int = PATIENCE) -> list[float]:
        """The last `count` values; NaN if there have not been so many."""
        values = [line.get(key, math.nan) for line in self.recent[-count:]]
        return values if len(values) == count else [math.nan]

    def objectives(self, lines: Sequence[Line]) -> list[float]:
        """Score less drift of PATIENCE lines, all at the price that the run began with: --kl-target moves it, and what
        is worth more in one iteration would be worth less at the price of another. NaN for fewer lines.
        """
        if len(lines) < PATIENCE:
            return [math.nan]
        price = self.first("kl_coef")
        return [line.get("score", math.nan) - price * line.get("kl", math.nan) for line in lines]

    def lasting(self, holds: Callable[[float], bool], key: str, count: int = PATIENCE) -> bool:
        """Whether this has held for so long."""
        return all(holds(value) for value in self.last(key, count))

    def throughout(self, unsound: Callable[[Line, Line], bool]) -> bool:
        """Whether this has held, between the first iteration and each of the last ones."""
        recent = self.recent[-PATIENCE:]
        return len(recent) == PATIENCE and all(unsound(self.opening[0], line) for line in recent)


def mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def significant(values: Sequence[float]) -> float:
    """By how many standard errors the second half lies above the first (Welch's t); NaN for fewer than four."""
    halves = values[: len(values) // 2], values[len(values) // 2 :]
    if len(halves[0]) < 2:
        return math.nan
    spread = sum(sum((x - mean(half)) ** 2 for x in half) / (len(half) - 1) / len(half) for half in halves)
    return (mean(halves[1]) - mean(halves[0])) / math.sqrt(max(spread, 1e-12))
