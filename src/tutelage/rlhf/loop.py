"""The iterations of PPO, RLOO and GRPO: which rollouts are learned from, which policy is kept, what is recorded.

    for iteration in loop.iterations():
        ... roll out, at loop.kl_coef ...
        ... measure the rollout ...
        if loop.should_learn(metrics, iteration):          # sound, within the KL budget, not the last iteration
            with loop.guarding(metrics, iteration):
                loop.record(metrics | improve(...), iteration)

One rollout more is made than is learned from, so that the last step is held to the KL budget, too. Why a run ends early
is decided in `early_stopping.py`, which policy it keeps in `best_policy.py`; both travel in the checkpoints.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tutelage.errors import InputError, TrainingError
from tutelage.learning.kl import adaptive_kl_coef
from tutelage.model.parameters import trainable
from tutelage.rlhf.best_policy import BestPolicy, rating
from tutelage.rlhf.config import RLConfig
from tutelage.rlhf.early_stopping import EarlyStopping
from tutelage.rlhf.history import Metrics
from tutelage.rlhf.learner import PolicyLearner
from tutelage.runs.ending import Ending, Figure, command
from tutelage.runs.run import Run
from tutelage.runs.snapshots import save_snapshot
from tutelage.text.tokenizer import Tokenizer


class TrainingLoop:
    """Continues from the run's checkpoint if there is one."""

    def __init__(self, run: Run, config: RLConfig, learner: PolicyLearner, tokenizer: Tokenizer):
        self.run, self.config, self.learner, self.tokenizer = run, config, learner, tokenizer
        self.first, self.ended = 0, False
        self.kl_coef = config.kl_coef  # changes where --kl-target is given
        self.stopping = EarlyStopping(config, str(run.device.compute_dtype), run.progress.say)
        self.policies = BestPolicy(learner.average.weights)
        if state := run.restore():
            check_keys(state, run)
            self.first, self.kl_coef = state["step"], state["kl_coef"]
            learner.load(state["learner"])
            self.stopping.load(state["stopping"])
            self.policies.load(state["policies"])

    def iterations(self) -> Iterator[int]:
        """Iterations still to come, each with its learning rate set, until the run ends. The last one only measures."""
        for iteration in range(self.first, self.config.iterations + 1):
            self.learner.set_learning_rate(iteration, self.config)
            yield iteration
            if self.ended:
                return

    def should_learn(self, metrics: Metrics, iteration: int) -> bool:
        """Whether to learn from this iteration's rollout. If it is sound, its policy becomes the one to keep."""
        self.stopping.check(metrics, iteration)
        self.stopping.check_kl(metrics["kl"], iteration)
        if self.stopping.reason:
            self._end(metrics, iteration)
            return False
        monitor = self.stopping.monitor
        if monitor.sound:
            self.policies.propose(self.learner.average.weights, iteration, metrics, rating(monitor.history))
            self._snapshot(iteration)
        return iteration < self.config.iterations

    @contextmanager
    def guarding(self, metrics: Metrics, iteration: int) -> Iterator[None]:
        """Around the steps of an iteration: one that cannot be taken ends the run, and the best policy is kept.

        Raises TrainingError in the first iteration, when nothing has been learned that could be kept.
        """
        try:
            yield
        except TrainingError as error:
            if iteration == 0:
                raise
            self.stopping.fail(error, iteration)
            self._end(metrics, iteration)

    def record(self, metrics: Metrics, iteration: int) -> None:
        """After the steps of an iteration: log, adapt the KL coefficient, save a checkpoint if one is due."""
        self.stopping.check(metrics, iteration)
        responses_per_second = (iteration + 1) * self.config.batch / self.run.seconds
        self.run.log(iteration + 1, **metrics, responses_per_second=responses_per_second)
        done = (iteration + 1) / self.config.iterations
        self.run.progress.update(done, score=metrics["score"], kl=metrics["kl"])
        if self.config.kl_target:
            self.kl_coef = adaptive_kl_coef(self.kl_coef, metrics["kl"], self.config.kl_target, self.config.kl_gain)
        self.run.checkpoint(iteration + 1, self.state)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        learned = {"learner": self.learner.state(), "kl_coef": self.kl_coef}
        return learned | {"stopping": self.stopping.state(), "policies": self.policies.state()}

    def restore_best(self) -> dict[str, Any]:
        """Give the policy the weights that are kept. Returns what belongs into run.json."""
        policy, mix = self.learner.policy, self.learner.mix
        policy.load_state_dict(policy.state_dict() | self.policies.candidate)
        coefficient = mix.share.coefficient if mix else 0.0
        kept = {"stopped": self.stopping.reason, "kept_iteration": self.policies.candidate_iteration}
        unchanged = {"nothing_learned": self.unchanged} if self.unchanged else {}
        return {"ptx_coef": coefficient, **kept, **unchanged, "findings": self.stopping.monitor.results()}

    @property
    def unchanged(self) -> str:
        """Why the policy that is kept is the one that the run began with; empty if it is not."""
        if self.policies.candidate_iteration:
            return ""
        reason = self.stopping.reason or "no later policy was sound"
        return f"iteration 0 was kept ({reason}), so nothing was learned: the policy is the one it started from"

    def ending(self) -> Ending:
        """What to say at the end of the run: the kept policy's metrics against those of the policy it started from."""
        kept, start, config = self.policies, self.stopping.monitor.history.first, self.config
        score = Figure("score", kept.candidate_metrics.get("score"), start=start("score"), better="higher")
        judge = kept.candidate_metrics.get("judge_score")
        judged = Figure(
            "judge score", judge, start=start("judge_score") if judge is not None else None, better="higher"
        )
        kl = Figure("KL", kept.candidate_metrics.get("kl"), note=f"nats per response, budget {config.kl_budget:g}")
        made = (
            f"optimised with {config.algorithm}; iteration {kept.candidate_iteration} of {config.iterations} was kept"
        )
        warnings = [f"{self.unchanged}; lower --lr"] if self.unchanged else []
        return Ending(
            made, [score, judged, kl], warnings, [command("chat", self.run.out), command("serve", self.run.out)]
        )

    def _end(self, metrics: Metrics, iteration: int) -> None:
        """End the run with its best policy, and say which one that is."""
        self.ended = True
        why = "the last sound one"
        if self.policies.fall_back_to_best():
            judged = "judge_score" in self.stopping.monitor.history.recent[-1]
            why = "with the highest judge score" if judged else "with the highest score - beta KL"
        kept = f"keeping the policy of iteration {self.policies.candidate_iteration}, {why}"
        self.run.progress.say(f"{self.run.out}: {self.stopping.reason}; {kept}")
        self.run.log(iteration + 1, **metrics)

    def _snapshot(self, iteration: int) -> None:
        """Save what the run would keep if it ended here, if a snapshot is due."""
        if not self.config.snapshot_due(iteration, self.config.iterations):
            return
        policy = self.learner.policy
        learning = {name: weight.detach().clone() for name, weight in trainable(policy).items()}
        policy.load_state_dict(policy.state_dict() | self.policies.candidate)
        save_snapshot(self.run, self.config, iteration, policy, self.tokenizer)
        policy.load_state_dict(policy.state_dict() | learning)


def check_keys(state: dict[str, Any], run: Run) -> None:
    """Raises InputError for a checkpoint of an earlier version, whose keys have other names."""
    if missing := [key for key in ("learner", "kl_coef", "stopping", "policies") if key not in state]:
        raise InputError(
            f"{run.out}: its checkpoint is from an earlier version (it has no {missing[0]!r}) and cannot be resumed; "
            "give another --out, or delete its checkpoints/ to start again"
        )
