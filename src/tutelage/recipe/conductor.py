"""Runs the steps of a recipe one after another, each a process of its own, and keeps demo.json.

A step is left alone when the hash of its config and inputs is that of the run on disk; otherwise it is made again and
the reason printed. Stop it however you like and run it again: it goes on from the last checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.recipe.step import Step
from tutelage.runs.log import clock
from tutelage.runs.run import read_run
from tutelage.runs.stage_process import INTERRUPTED, read_messages, stop, wait

GUESS = 30.0  # seconds of the plan that the guess at this machine's pace weighs as much as


class Conductor:
    """Runs the steps one after another and keeps the one progress line."""

    def __init__(
        self, out: Path, record: dict[str, Any], plan: Sequence[Step], expected: dict[str, int], pace: float = 1.0
    ):
        self.out, self.record, self.plan, self.expected = out, record, plan, expected
        self.pace = pace  # seconds here for a second of the plan: a guess, until stages have been timed
        self.live = sys.stdout.isatty()
        self.shown = 0.0
        self.resumed: float | None = None  # the fraction at which the running stage went on
        self.spent = self.planned = (
            0.0  # seconds of the stages run in this sitting, and what they were expected to take
        )

    def run_all(self) -> None:
        for number, step in enumerate(self.plan, start=1):
            title = f"{number:2}/{len(self.plan)} {step.name:9}"
            reason = step.reason_to_run()
            if reason is None:
                self.line(f"{title} done before", keep=True)
                continue
            if reason != "not made yet":
                self.line(f"{title} made again: {reason}", keep=True)
            goes_on = reason == "not made yet" and (step.record / "checkpoints").is_dir()
            if not goes_on:
                self.record["stages"].pop(step.name, None)  # what it took the other time is not part of this result
            self.run(step, title)

    def run(self, step: Step, title: str) -> None:
        """One stage as a subprocess, its progress shown, its time and peak memory recorded."""
        environment = os.environ | {"TUTELAGE_PROGRESS": "json"}
        command = [sys.executable, "-m", "tutelage", *step.command()]
        begun, self.resumed = time.monotonic(), None
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        said: list[str] = []
        try:
            for message in read_messages(process):
                if "fraction" in message:
                    self.progress(step, title, message, time.monotonic() - begun)
                elif "say" in message:
                    self.line(f"{title} {message['say']}", keep=True)
                elif "text" in message:  # a stage's ending is left out: the line below sums it up
                    said.append(message["text"])
            status, peak = wait(process)
            if status == INTERRUPTED:  # its Ctrl-C was ours, too, whoever hears of it first
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            stop(process)
            self.line(f"{title} stopped; run the same command again to go on from here", keep=True)
            raise
        finally:
            self.note(step, time.monotonic() - begun, 0)
        if status == 2:
            raise InputError(f"{step.name}: {said[-1] if said else 'refused its input'}")
        if status != 0:
            crash(step, status, said)
        self.note(step, 0.0, peak)
        self.spent += time.monotonic() - begun
        self.planned += self.expected[step.name]
        self.line(
            f"{title} {clock(time.monotonic() - begun):>5} | {peak / 2**20:,.0f} MiB | {outcome(step)}", keep=True
        )

    def note(self, step: Step, seconds: float, peak: int) -> None:
        """Add to the stage's time over all sittings; keep its highest peak."""
        old = self.record["stages"].get(step.name, {"seconds": 0.0, "peak_memory_bytes": 0})
        self.record["stages"][step.name] = {
            "seconds": round(old["seconds"] + seconds, 2),
            "peak_memory_bytes": max(old["peak_memory_bytes"], peak),
        }
        write_record(self.out, self.record)

    def progress(self, step: Step, title: str, message: dict[str, Any], running: float) -> None:
        """The stage's own numbers and the time left in all, at most a few times a second."""
        now = time.monotonic()
        if self.resumed is None:
            self.resumed = message["fraction"]
        if now - self.shown < (0.2 if self.live else 10.0):
            return
        self.shown = now
        fraction = message["fraction"]
        numbers = "".join(
            f" | {k} {v}" if isinstance(v, str) else f" | {k} {v:.3g}" for k, v in message["shown"].items()
        )
        self.line(f"{title} {fraction:4.0%}{numbers} | {clock(self.left(step, fraction, running))} left in all")

    def left(self, step: Step, fraction: float, running: float) -> float:
        """Expected seconds of what is to come, scaled by how this machine has kept to the expectation so far."""
        done = self.planned + (fraction - (self.resumed or 0.0)) * self.expected[step.name]
        pace = (GUESS * self.pace + self.spent + running) / (GUESS + done)
        coming = sum(self.expected[s.name] for s in self.plan[self.plan.index(step) + 1 :])
        return pace * (coming + (1 - fraction) * self.expected[step.name])

    def line(self, text: str, keep: bool = False) -> None:
        """Overwrite the progress line on a terminal; elsewhere one line each."""
        if self.live:
            print(f"\r\x1b[2K{text}", end="\n" if keep else "", flush=True)
        else:
            print(text, flush=True)


def crash(step: Step, status: int, said: Sequence[str]) -> NoReturn:
    """A stage that failed through no fault of the user: its own last words, whole, and exit code 1."""
    print("\n".join(said), file=sys.stderr)
    if status < 0:
        reason = f"ended by {signal.Signals(-status).name}; if memory ran out, free some and run the same command again"
    else:
        reason = "failed; what it printed stands above"
    print(f"{step.name}: {reason}", file=sys.stderr)
    sys.exit(1)


def outcome(step: Step) -> str:
    """The stage's main numbers, from its run.json."""
    found = read_run(step.record) if step.config else None
    numbers = (found or {}).get("results", {})
    shown = {k: v for k, v in numbers.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.3g}" for k, v in list(shown.items())[:4])


def read_record(out: Path) -> dict[str, Any] | None:
    """demo.json: what the stages took, over all sittings."""
    try:
        return json.loads((out / "demo.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def write_record(out: Path, record: dict[str, Any]) -> None:
    with atomic_write(out / "demo.json") as file:
        json.dump(record, file, indent=2)
