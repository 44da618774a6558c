"""When a run has to end before its last iteration.

    metrics of an iteration  ->  the monitor's findings, the KL budget  ->  the reason to stop, or None

Three things end a run early: a finding of the monitor that nothing can be learned from, a KL above the budget, and a
step that cannot be taken because its loss or gradient is not finite.
"""

from collections.abc import Callable
from typing import Any

from tutelage.errors import TrainingError
from tutelage.rlhf.config import RLConfig
from tutelage.rlhf.history import Limits, Metrics
from tutelage.rlhf.monitor import Monitor, report


class EarlyStopping:
    """`reason` says why the run has to end; None while it may go on."""

    def __init__(self, config: RLConfig, dtype: str, say: Callable[[str], None]):
        self.kl_budget, self.say = config.kl_budget, say
        self.monitor = Monitor(Limits(dtype, config.max_tokens, config.ptx_share, config.algorithm))
        self.reason: str | None = None

    def check(self, metrics: Metrics, iteration: int) -> None:
        """Report what the monitor finds in these metrics. Raises InputError for a run broken from the start."""
        self.reason = report(self.monitor.record(iteration, metrics), self.say) or self.reason

    def check_kl(self, kl: float, iteration: int) -> None:
        """Stop when the KL of a rollout, in nats per response, exceeds the budget."""
        if kl > self.kl_budget:
            budget = f"the budget of {self.kl_budget} nats"
            self.reason = f"KL {kl:.1f} exceeded {budget} at iteration {iteration}"

    def fail(self, error: TrainingError, iteration: int) -> None:
        """Stop because a step of this iteration could not be taken."""
        self.reason = report([self.monitor.add(iteration, "step impossible", str(error))], self.say)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"monitor": self.monitor.state(), "reason": self.reason}

    def load(self, state: dict[str, Any]) -> None:
        self.monitor.load(state["monitor"])
        self.reason = state["reason"]
