"""The iterations of a run, and how far the policy may drift in them: up to a budget of nats per response.

    each rollout's KL -> within the budget: keep the averaged policy that made it, learn from it; beyond: stop

    for iteration in budget.iterations():
        ... a rollout, its drift at budget.price ...
        ... what is measured of a rollout ...
        if budget.holds(measured, iteration):
            with budget.learning(measured, iteration):
                budget.learnt(measured | improve(...), iteration)

The watch (`watch.py`) looks at the same measurements: it says what is wrong, and stops what cannot be learned from.
A run that is stopped keeps its best sound policy: over several rollouts the judge liked it best; without a judge, it
had most of what is maximised, score less drift, at the price that the run began with. Stopped before there were so
many rollouts it keeps the last.

One rollout more is made than is learned from, so that the last step, too, is held to the budget. What is kept travels
in the checkpoints, with the learner.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tutelage.errors import TrainingError
from tutelage.learning.kl import adaptive_kl_coef
from tutelage.model.parameters import trainable
from tutelage.rlhf.config import RLConfig
from tutelage.rlhf.history import PATIENCE, Limits, Line, mean
from tutelage.rlhf.learner import PolicyLearner
from tutelage.rlhf.monitor import Monitor, tell
from tutelage.runs.run import Run
from tutelage.runs.snapshots import save_snapshot
from tutelage.text.tokenizer import Tokenizer


class KLBudget:
    """The weights to keep, and how far the run has come; goes on from the run's checkpoint if there is one."""

    def __init__(self, run: Run, learner: PolicyLearner, tokenizer: Tokenizer):
        self.run, self.learner, self.tokenizer = run, learner, tokenizer
        self.config: RLConfig = run.config  # type: ignore[assignment]
        self.first, self.over = 0, False
        self.kept: dict[str, Tensor] = dict(learner.average.weights)
        self.kept_at = self.liked_at = 0  # the iterations whose rollouts they made
        self.price = self.config.kl_coef  # of a nat of drift; moves where --kl-target is given
        self.liked: dict[str, Tensor] | None = None  # the best so far, once there have been several rollouts
        self.liking = -math.inf
        self.stopped: str | None = None
        dtype, share = str(run.device.compute_dtype), self.config.ptx_share
        self.watch = Monitor(Limits(dtype, self.config.max_tokens, share, self.config.algorithm))
        if state := run.restore():
            learner.load(state["learner"])
            self.watch.load(state["watch"])
            self.stopped = state["stopped"]
            self.first, self.kept = state["step"], state["kept"]
            self.liked, self.liking, self.price = state["liked"], state["liking"], state["price"]
            self.kept_at, self.liked_at = state["kept_at"], state["liked_at"]

    def iterations(self) -> Iterator[int]:
        """Those still to come, each at its rate, until the run has to end. The last one only measures."""
        for iteration in range(self.first, self.config.iterations + 1):
            self.learner.set_rate(iteration, self.config)
            yield iteration
            if self.over:
                return

    def holds(self, measured: Line, iteration: int) -> bool:
        """Whether this iteration's rollout is to be learnt from: it is within the budget, and not the last.

        Within it the policy that made it is the one to keep, unless the watch finds it unsound for now.
        """
        self._look(measured, iteration)
        if measured["kl"] > self.config.kl_budget:
            budget = f"the budget of {self.config.kl_budget} nats"
            self.stopped = f"KL {measured['kl']:.1f} exceeded {budget} at iteration {iteration}"
        if self.stopped:
            self._end(measured, iteration)
            return False
        if self.watch.sound:
            self.kept = {name: weight.clone() for name, weight in self.learner.average.weights.items()}
            self.kept_at = iteration
            self._like()
            self._snapshot(iteration)
        return iteration < self.config.iterations

    @contextmanager
    def learning(self, measured: Line, iteration: int) -> Iterator[None]:
        """Around an iteration's steps: one that cannot be taken ends the run, and the best policy is kept.

        Raises TrainingError in the first iteration: nothing has been learnt that could be kept.
        """
        try:
            yield
        except TrainingError as error:
            if iteration == 0:
                raise
            self.stopped = tell([self.watch.add(iteration, "step impossible", str(error))], self.run.progress.say)
            self._end(measured, iteration)

    def learnt(self, measured: Line, iteration: int) -> None:
        """After this iteration's steps: log them; save if it is time to, or if somebody asked to stop."""
        self._look(measured, iteration)
        rate = (iteration + 1) * self.config.batch / self.run.seconds
        self.run.log(iteration + 1, **measured, responses_per_second=rate)
        done = (iteration + 1) / self.config.iterations
        self.run.progress.update(done, score=measured["score"], kl=measured["kl"])
        if self.config.kl_target:
            self.price = adaptive_kl_coef(self.price, measured["kl"], self.config.kl_target, self.config.kl_gain)
        self.run.checkpoint(iteration + 1, self.state)

    def _end(self, measured: Line, iteration: int) -> None:
        """Keep the best policy, and say so."""
        self.over = True
        why = self._put_right()
        self.run.progress.say(f"{self.run.out}: {self.stopped}; the policy of iteration {self.kept_at} is kept, {why}")
        self.run.log(iteration + 1, **measured)

    def _look(self, measured: Line, iteration: int) -> None:
        """Say what is wrong since this iteration. What the run has to end for ends it at the next rollout."""
        self.stopped = tell(self.watch.look(iteration, measured), self.run.progress.say) or self.stopped

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the learner, the averaged policy that was sound last, what was seen of it."""
        seen = {"watch": self.watch.state(), "stopped": self.stopped, "liked": self.liked, "liking": self.liking}
        kept = {"kept": self.kept, "kept_at": self.kept_at, "liked_at": self.liked_at}
        return {"learner": self.learner.state(), "price": self.price} | kept | seen

    def _like(self) -> None:
        """Remember what is kept if it is better than all before: to the judge, else by the objective."""
        seen = self.watch.seen
        rated = mean(seen.objectives(seen.recent[-PATIENCE:])) if math.isnan(self._judged) else self._judged
        if rated > self.liking:
            self.liked, self.liking, self.liked_at = self.kept, rated, self.kept_at

    @property
    def _judged(self) -> float:
        """The judge's score over several rollouts; NaN without a judge, and before there were so many."""
        return mean(self.watch.seen.last("judge_score"))

    def _put_right(self) -> str:
        """After a stop: keep the best policy. Returns what makes it that, in words."""
        if self.liked is None:
            return "the last sound one"
        self.kept, self.kept_at = self.liked, self.liked_at
        judged = "judge_score" in self.watch.seen.recent[-1]
        return "which the judge liked best" if judged else "the best by score less drift"

    def _snapshot(self, iteration: int) -> None:
        """Keep what the run would save if it ended here, where one is due."""
        if not self.config.snapshot_due(iteration, self.config.iterations):
            return
        policy = self.learner.policy
        learning = {name: weight.detach().clone() for name, weight in trainable(policy).items()}
        policy.load_state_dict(policy.state_dict() | self.kept)
        save_snapshot(self.run, iteration, policy, self.tokenizer)
        policy.load_state_dict(policy.state_dict() | learning)

    def put_back(self) -> dict[str, Any]:
        """The kept weights become the policy's. Returns what belongs into run.json."""
        policy, mix = self.learner.policy, self.learner.mix
        policy.load_state_dict(policy.state_dict() | self.kept)
        coefficient = mix.share.coefficient if mix else 0.0
        kept = {"stopped": self.stopped, "kept_iteration": self.kept_at}
        return {"ptx_coef": coefficient, **kept, "findings": self.watch.results()}
