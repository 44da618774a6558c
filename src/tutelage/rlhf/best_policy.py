"""Which weights a run keeps: the newest sound policy, or after an early stop the best one so far.

    averaged weights of an iteration, their rating  ->  candidate  ->  best

The rating is the held-out judge's score over several rollouts. Without a judge it is the objective, score - beta KL, at
the KL coefficient that the run began with. Before there are several rollouts nothing is rated.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tutelage.rlhf.history import PATIENCE, History, Metrics, mean


class BestPolicy:
    """The candidate is what a run saves if it ends now; `best` is the candidate with the highest rating so far."""

    def __init__(self, weights: Mapping[str, Tensor]):
        self.candidate: dict[str, Tensor] = dict(weights)
        self.best: dict[str, Tensor] | None = None  # None until a policy has been rated
        self.best_rating = -math.inf
        self.candidate_iteration = self.best_iteration = 0  # the iterations whose rollouts these policies sampled
        self.candidate_metrics: Metrics = {}  # of these rollouts
        self.best_metrics: Metrics = {}

    def propose(self, weights: Mapping[str, Tensor], iteration: int, metrics: Metrics, rating: float) -> None:
        """Make a copy of these weights the candidate; a rating of NaN never makes it the best."""
        self.candidate = {name: weight.clone() for name, weight in weights.items()}
        self.candidate_iteration, self.candidate_metrics = iteration, metrics
        if rating > self.best_rating:
            self.best, self.best_rating = self.candidate, rating
            self.best_iteration, self.best_metrics = iteration, metrics

    def fall_back_to_best(self) -> bool:
        """Make the best policy the candidate. Returns whether there is one."""
        if self.best is None:
            return False
        self.candidate, self.candidate_iteration = self.best, self.best_iteration
        self.candidate_metrics = self.best_metrics
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return dict(vars(self))

    def load(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


def rating(history: History) -> float:
    """How good the policy of the last rollouts is; NaN before there are PATIENCE of them."""
    judged = mean(history.last("judge_score"))
    return mean(history.objectives(history.recent[-PATIENCE:])) if math.isnan(judged) else judged
