"""Monitors a reinforcement-learning run: the metrics of each iteration -> findings in plain words.

    Monitor(limits).record(iteration, metrics) -> [Finding(iteration, name, words, verdict)]

The checks and their thresholds are in `diagnostics.py`. Each reports once in a run, not in each iteration. The verdict
`warn` only informs. `stop` ends a run that nothing more can be learned from and keeps its best policy. `refuse` does
the same, but in the first iteration it refuses the run, because nothing has been learned yet. The monitor only reads
numbers; it changes none of the training.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tutelage.errors import InputError
from tutelage.rlhf.diagnostics import CHECKS, UNSOUND, Verdict
from tutelage.rlhf.history import PATIENCE, WINDOW, History, Limits, Metrics


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: since when, its name, and in words the numbers, a likely cause and the next move."""

    iteration: int
    name: str
    words: str
    verdict: Verdict


class Monitor:
    """Applies the checks to one run. `state` and `load` carry it through an interruption."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.history = History(limits, opening=[], recent=[], iteration=-1)
        self.findings: list[Finding] = []

    def record(self, iteration: int, metrics: Metrics) -> list[Finding]:
        """Add an iteration's metrics, all at once or in several calls. Returns what is newly wrong."""
        self.history = self._with(iteration, metrics)
        known = {finding.name for finding in self.findings}
        new = [
            Finding(iteration, name, words, verdict)
            for name, verdict, check in CHECKS
            if name not in known and (words := check(self.history))
        ]
        self.findings += new
        return new

    def add(self, iteration: int, name: str, words: str) -> Finding:
        """A finding made elsewhere that ends the run."""
        self.findings.append(Finding(iteration, name, words, "stop"))
        return self.findings[-1]

    def _with(self, iteration: int, metrics: Metrics) -> History:
        opening, recent = list(self.history.opening), list(self.history.recent)
        if iteration == self.history.iteration:
            metrics = recent.pop() | metrics
            opening = opening[:iteration] if iteration < PATIENCE else opening
        opening = opening if len(opening) == PATIENCE else [*opening, metrics]
        return History(self.limits, opening, [*recent, metrics][-WINDOW:], iteration)

    @property
    def sound(self) -> bool:
        """Whether the policy of the last rollout is worth keeping: none of the hard limits is crossed at the moment."""
        first, now = self.history.opening[0], self.history.recent[-1]
        return not any(unsound(first, now) for unsound in UNSOUND)

    def results(self) -> list[dict[str, Any]]:
        """The findings as run.json has them."""
        return [
            {"iteration": finding.iteration, "name": finding.name, "words": finding.words} for finding in self.findings
        ]

    def state(self) -> dict[str, Any]:
        """All that later findings depend on."""
        history = {"opening": self.history.opening, "recent": self.history.recent, "iteration": self.history.iteration}
        return history | {"findings": [asdict(finding) for finding in self.findings]}

    def load(self, state: dict[str, Any]) -> None:
        self.history = History(self.limits, state["opening"], state["recent"], state["iteration"])
        self.findings = [Finding(**finding) for finding in state["findings"]]


def report(findings: Sequence[Finding], say: Callable[[str], None]) -> str | None:
    """Say each finding in one line. Returns why the run has to end, or None.

    Raises InputError where a finding refuses the run.
    """
    reason = None
    for finding in findings:
        line = f"iteration {finding.iteration}: {finding.name}: {finding.words}"
        if finding.verdict == "refuse" and finding.iteration == 0:
            raise InputError(f"policy: {line}")
        say(f"{'found' if finding.verdict == 'warn' else 'stopped'} at {line}")
        if finding.verdict != "warn":
            reason = f"{finding.name} at iteration {finding.iteration}"
    return reason
