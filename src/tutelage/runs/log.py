"""The output of a run while it works: a progress line for people, and metrics.jsonl for the report.

    Progress(title).update(fraction, score=1.8, kl=6.1) -> one updated line on a terminal, a line every 10 s elsewhere

With TUTELAGE_PROGRESS=json, which a parent process sets, each update is one JSON object per line on standard output.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.json_file import lines_of, parse

INTERVAL = {"bar": 0.2, "json": 0.5, "lines": 10.0}  # seconds between two updates, by mode

UNKNOWN = "-:--"  # the time left, before there is anything to estimate it from


class Progress:
    """The progress line of a stage: fraction done, a few current numbers, and the time left."""

    def __init__(self, title: str):
        self.title = title
        self.mode = os.environ.get("TUTELAGE_PROGRESS") or ("bar" if sys.stderr.isatty() else "lines")
        self.begun = time.monotonic()
        self.start_fraction: float | None = None
        self.last = 0.0
        self.open_line = False  # whether the cursor stands behind a progress line

    def update(self, fraction: float, **shown: float | str) -> None:
        """Show the fraction done (0 to 1) and these numbers, unless the last update was too recent."""
        now = time.monotonic()
        if self.start_fraction is None:
            # The time left is estimated from the work since here, not from loading, nor from before a resumed run.
            self.start_fraction, self.begun = fraction, now
        if self.mode not in INTERVAL or (now - self.last < INTERVAL[self.mode] and fraction < 1):
            return
        self.last = now
        if self.mode == "json":
            print(json.dumps({"stage": self.title, "fraction": fraction, "shown": shown}), flush=True)
            return
        line = f"{self.title} {fraction:4.0%}"
        for name, value in shown.items():
            line += f" | {name} {value}" if isinstance(value, str) else f" | {name} {value:.4g}"
        left = self._left(fraction, now)
        line += f" | {UNKNOWN if left is None else clock(left)} left"
        if self.mode == "bar":
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
            self.open_line = True
        else:
            print(line, file=sys.stderr, flush=True)

    def _left(self, fraction: float, now: float) -> float | None:
        """Seconds left; None while there is nothing to estimate them from."""
        done = fraction - (self.start_fraction or 0.0)
        if fraction >= 1:
            return 0.0
        return (now - self.begun) * (1 - fraction) / done if done > 0 else None

    def say(self, text: str) -> None:
        """Print a line that later updates do not overwrite. A line break, which a path may have, becomes a space."""
        text = " ".join(text.splitlines())
        if self.mode == "json":
            print(json.dumps({"stage": self.title, "say": text}), flush=True)
        else:
            print(f"\r\x1b[2K{text}" if self.mode == "bar" else text, file=sys.stderr, flush=True)
            self.open_line = False

    def close(self) -> None:
        """End the progress line, so that what another part of the program prints has its own."""
        if self.open_line:
            print(file=sys.stderr, flush=True)
            self.open_line = False

    def end(self, lines: Sequence[str]) -> None:
        """The last lines of a stage. A parent gets them in a message of another kind, and prints its own summary."""
        if self.mode == "json":
            print(json.dumps({"stage": self.title, "ending": list(lines)}), flush=True)
        else:
            for line in lines:
                self.say(line)


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours if there are any: 90 -> 1:30, 3725 -> 1:02:05."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"


class MetricsFile:
    """metrics.jsonl: one line per logged step; every key is defined in docs/metrics.md."""

    def __init__(self, path: Path):
        self.path = path
        self.begun = time.monotonic()

    def rewind(self, step: int) -> None:
        """Remove the lines after `step`, from which the run resumes."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        with atomic_write(self.path) as file:  # atomic, so that a full disk does not lose the earlier lines
            file.writelines(json.dumps(line) + "\n" for line in kept)

    def append(self, step: int, seconds: float, metrics: dict[str, Any]) -> None:
        """Add one line; numbers are rounded to seven digits."""
        line = {"step": step, "time": round(seconds, 3)} | {k: _plain(v) for k, v in metrics.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _plain(value: Any) -> Any:
    return float(f"{float(value):.7g}") if not isinstance(value, str | int | bool | None) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, up to one that a crash has cut short; empty without the file."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(InputError):
        for _, text in lines_of(path):
            line = parse(text, "", "")
            if not isinstance(line, dict) or type(line.get("step")) is not int:
                break
            lines.append(line)
    return lines
