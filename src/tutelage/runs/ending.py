"""What a command prints at its end: what it made, the numbers that matter against where they began, what to run next.

    what was made, figures, warnings, next commands -> lines of text

For example:

    runs/sft: fine-tuned on 1,204 conversations in 61 steps
      held-out loss 3.21 -> 2.64
      next: tutelage chat runs/sft

A figure that is no better than at the start is marked, and a training too short to change the model gets a warning.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """One number at the end of a run, and the same number at its start if that was measured."""

    name: str
    value: float | None  # None: there was nothing to measure it on, and the figure is left out
    start: float | None = None
    better: Literal["lower", "higher"] | None = None  # a figure that did not move this way is marked
    note: str = ""
    format: str = ".4g"

    @property
    def line(self) -> str:
        value = f"{self.value:{self.format}}"
        before = "" if self.start is None else f"{self.start:{self.format}} -> "
        return f"{self.name} {before}{value}" + (f" ({self.note})" if self.note else "") + self._verdict

    @property
    def _verdict(self) -> str:
        if self.better is None or self.start is None or self.value is None:
            return ""
        gain = self.value - self.start if self.better == "higher" else self.start - self.value
        return "" if gain > 0 else f": not {self.better} than at the start"


@dataclass(frozen=True)
class Ending:
    """What there is to say about a finished run."""

    made: str
    table: Sequence[str] = field(default=(), kw_only=True)
    figures: Sequence[Figure] = ()
    warnings: Sequence[str] = ()
    next: Sequence[str] = ()

    def lines(self, out: Path) -> list[str]:
        """The lines to print; `out` is what the command wrote."""
        return [
            f"{out}: {self.made}",
            *(f"  {line}" for line in self.table),
            *(f"  {figure.line}" for figure in self.figures if figure.value is not None),
            *(f"  warning: {warning}" for warning in self.warnings),
            *(f"  {'  or' if i else 'next'}: {line}" for i, line in enumerate(self.next)),
        ]


def command(*words: str | Path) -> str:
    """A tutelage command line as one would type it, paths quoted where a shell needs it."""
    return shlex.join(["tutelage", *map(str, words)])


def counted(number: float, noun: str) -> str:
    """1 step, 1,204 steps."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short_training(steps: int, advice: str) -> list[str]:
    """The warning after a training of a single step or none; `advice` says how to train longer."""
    if steps > 1:
        return []
    if steps == 1:
        return [f"only one training step was taken; {advice}"]
    return [f"no training step was taken, so the model is the one it started from; {advice}"]


def first_and_last(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[float | None, float | None]:
    """The first and the last value of a logged number; both None if it was never logged."""
    values = [line[key] for line in metrics if line.get(key) is not None]
    return (values[0], values[-1]) if values else (None, None)


def training_loss(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """The training loss at the first and the last step, for runs without held-out data."""
    first, last = first_and_last(metrics, "loss")
    if len(metrics) < 2:
        return Figure("training loss", last)
    return Figure("training loss", last, start=first, better="lower", note="first and last step")
