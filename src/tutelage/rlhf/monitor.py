"""Watches a reinforcement-learning run: what is measured of each iteration -> findings in plain words.

    Monitor(limits).look(iteration, measured) -> [Finding(iteration, name, words, verdict)]

The checks themselves, with their thresholds, are in `checks.py`. Each finds something once in a run, not in each
iteration. Most only warn; what cannot be learnt from ends the run (stop: the best sound policy is kept), and so does
what is broken outright, but that a run which has learnt nothing yet is refused. No tensors: a run's own measurements,
and no number of the training.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tutelage.errors import InputError
from tutelage.rlhf.diagnostics import CHECKS, UNSOUND, Verdict
from tutelage.rlhf.history import PATIENCE, WINDOW, History, Limits, Line


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: since when, its name, and the numbers, the likely cause and the next move in words."""

    iteration: int
    name: str
    words: str
    verdict: Verdict


class Monitor:
    """The checks over one run. It can be stopped and taken up again: `state` and `load`."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.seen = History(limits, opening=[], recent=[], iteration=-1)
        self.findings: list[Finding] = []

    def look(self, iteration: int, measured: Line) -> list[Finding]:
        """What is wrong since this iteration. Call it as often as more is known of an iteration."""
        self.seen = self._with(iteration, measured)
        known = {finding.name for finding in self.findings}
        found = [
            Finding(iteration, name, words, verdict)
            for name, verdict, check in CHECKS
            if name not in known and (words := check(self.seen))
        ]
        self.findings += found
        return found

    def add(self, iteration: int, name: str, words: str) -> Finding:
        """What was found elsewhere and ends the run."""
        self.findings.append(Finding(iteration, name, words, "stop"))
        return self.findings[-1]

    def _with(self, iteration: int, measured: Line) -> History:
        opening, recent = list(self.seen.opening), list(self.seen.recent)
        if iteration == self.seen.iteration:
            measured = recent.pop() | measured
            opening = opening[:iteration] if iteration < PATIENCE else opening
        opening = opening if len(opening) == PATIENCE else [*opening, measured]
        return History(self.limits, opening, [*recent, measured][-WINDOW:], iteration)

    @property
    def sound(self) -> bool:
        """Whether the policy of the last rollout is worth keeping: no hard limit is crossed, if only for now."""
        first, now = self.seen.opening[0], self.seen.recent[-1]
        return not any(unsound(first, now) for unsound in UNSOUND)

    def results(self) -> list[dict[str, Any]]:
        """The findings as run.json has them."""
        return [
            {"iteration": finding.iteration, "name": finding.name, "words": finding.words} for finding in self.findings
        ]

    def state(self) -> dict[str, Any]:
        """All that later findings depend on."""
        seen = {"opening": self.seen.opening, "recent": self.seen.recent, "iteration": self.seen.iteration}
        return seen | {"findings": [asdict(finding) for finding in self.findings]}

    def load(self, state: dict[str, Any]) -> None:
        self.seen = History(self.limits, state["opening"], state["recent"], state["iteration"])
        self.findings = [Finding(**finding) for finding in state["findings"]]


def tell(findings: Sequence[Finding], say: Callable[[str], None]) -> str | None:
    """One line for each; returns why the run has to end, if it has to. Raises InputError where it is refused."""
    stopped = None
    for finding in findings:
        line = f"iteration {finding.iteration}: {finding.name}: {finding.words}"
        if finding.verdict == "refuse" and finding.iteration == 0:
            raise InputError(f"policy: {line}")
        say(f"{'found' if finding.verdict == 'warn' else 'stopped'} at {line}")
        if finding.verdict != "warn":
            stopped = f"{finding.name} at iteration {finding.iteration}"
    return stopped
