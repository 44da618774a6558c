"""Runs the steps of a recipe one after another, each in a separate process, and keeps demo.json.

A step is skipped if the run on disk has the same config and the same inputs, by hash. Otherwise it runs again, and the
reason is printed. However a recipe was stopped, running it again continues from the last checkpoint.
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
from tutelage.json_file import read_object
from tutelage.kinds import check_fields, mapped, number, record_of
from tutelage.recipe.step import NOT_RUN, Step
from tutelage.runs.log import clock
from tutelage.runs.record import read_run
from tutelage.runs.stage_process import INTERRUPTED, read_messages, stop, wait

GUESS = 30.0  # weight of the guessed pace, in seconds of the plan: from then on measured time outweighs it


COST = record_of({"seconds": number(), "peak_memory_bytes": number()}, required=("seconds", "peak_memory_bytes"))


class Conductor:
    """Runs the steps one after another and keeps the single progress line up to date."""

    def __init__(
        self, out: Path, record: dict[str, Any], plan: Sequence[Step], expected: dict[str, int], pace: float = 1.0
    ):
        self.out, self.record, self.plan, self.expected = out, record, plan, expected
        # Seconds on this machine per second of the plan: a guess, until stages have been timed.
        self.pace = pace
        self.live = sys.stdout.isatty()
        self.shown = 0.0
        # The fraction of its work at which the running stage started or resumed.
        self.resumed: float | None = None
        # Seconds of the stages run by this command, and the seconds they were expected to take.
        self.spent = self.planned = 0.0

    def run_all(self) -> None:
        for place, step in enumerate(self.plan, start=1):
            title = f"{place:2}/{len(self.plan)} {step.name:9}"
            reason = step.reason_to_run()
            if reason is None:
                self.line(f"{title} already done", keep=True)
                continue
            if reason != NOT_RUN:
                self.line(f"{title} running again: {reason}", keep=True)
            resumes = reason == NOT_RUN and (step.record / "checkpoints").is_dir()
            if not resumes:
                self.record["stages"].pop(step.name, None)  # the time of an earlier result does not count for this one
            self.run(step, title)

    def run(self, step: Step, title: str) -> None:
        """Run one stage as a subprocess, show its progress, and record its time and peak memory."""
        start, self.resumed = time.monotonic(), None
        process = start_process(step)
        output: list[str] = []
        try:
            for message in read_messages(process):
                if "fraction" in message:
                    self.progress(step, title, message, time.monotonic() - start)
                elif "say" in message:
                    self.line(f"{title} {message['say']}", keep=True)
                elif "text" in message:  # a stage's ending is left out: the line below sums it up
                    output.append(message["text"])
            status, peak = wait(process)
            if status == INTERRUPTED:  # Ctrl-C reaches both processes; the stage may handle it before we do
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            stop(process)
            self.line(f"{title} stopped; run the same command again to continue", keep=True)
            raise
        finally:
            self.note(step, time.monotonic() - start, 0)
        if status == 2:
            raise InputError(f"{step.name}: {output[-1] if output else 'the stage rejected its input'}")
        if status != 0:
            crash(step, status, output)
        self.note(step, 0.0, peak)
        seconds = time.monotonic() - start
        self.spent += seconds
        self.planned += self.expected[step.name]
        self.line(f"{title} {clock(seconds):>5} | {peak / 2**20:,.0f} MiB | {outcome(step)}", keep=True)

    def note(self, step: Step, seconds: float, peak: int) -> None:
        """Add to the stage's recorded time, which is summed over all resumed runs, and keep its highest peak memory."""
        old = self.record["stages"].get(step.name, {"seconds": 0.0, "peak_memory_bytes": 0})
        self.record["stages"][step.name] = {
            "seconds": round(old["seconds"] + seconds, 2),
            "peak_memory_bytes": max(old["peak_memory_bytes"], peak),
        }
        write_record(self.out, self.record)

    def progress(self, step: Step, title: str, message: dict[str, Any], running: float) -> None:
        """Show the stage's own numbers and the total time left, at most a few times a second."""
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
        self.line(f"{title} {fraction:4.0%}{numbers} | {clock(self.left(step, fraction, running))} left in total")

    def left(self, step: Step, fraction: float, running: float) -> float:
        """Expected seconds until the end: the plan's, scaled by this machine's pace so far."""
        done = self.planned + (fraction - (self.resumed or 0.0)) * self.expected[step.name]
        pace = (GUESS * self.pace + self.spent + running) / (GUESS + done)
        coming = sum(self.expected[s.name] for s in self.plan[self.plan.index(step) + 1 :])
        return pace * (coming + (1 - fraction) * self.expected[step.name])

    def line(self, text: str, keep: bool = False) -> None:
        """On a terminal, overwrite the progress line; otherwise print one line each time."""
        if self.live:
            print(f"\r\x1b[2K{text}", end="\n" if keep else "", flush=True)
        else:
            print(text, flush=True)


def start_process(step: Step) -> subprocess.Popen[str]:
    """The stage's command, with its progress as JSON lines and stderr merged into stdout."""
    environment = os.environ | {"TUTELAGE_PROGRESS": "json"}
    command = [sys.executable, "-m", "tutelage", *step.command()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def crash(step: Step, status: int, output: Sequence[str]) -> NoReturn:
    """Print the output of a stage that failed through no mistake of the user, and exit with code 1."""
    print("\n".join(output), file=sys.stderr)
    if status < 0:
        name = signal.Signals(-status).name
        reason = f"ended by {name}; if memory ran out, free some and run the same command again"
    else:
        reason = "failed; its output is above"
    print(f"{step.name}: {reason}", file=sys.stderr)
    sys.exit(1)


def outcome(step: Step) -> str:
    """The stage's main numbers, from its run.json."""
    finished = read_run(step.record) if step.config else None
    results = (finished or {}).get("results", {})
    numbers = {k: v for k, v in results.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    told = [f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.3g}" for k, v in list(numbers.items())[:4]]
    return ", ".join([*told, *([results["nothing_learned"]] if "nothing_learned" in results else [])])


def read_record(out: Path) -> dict[str, Any] | None:
    """demo.json: the seed, and each stage's time and peak memory. None if it is missing or holds something else."""
    try:
        record = read_object(out / "demo.json")
        check_fields(record, {"stages": mapped(COST)}, "demo.json")
    except InputError:
        return None
    return record if "stages" in record else None


def write_record(out: Path, record: dict[str, Any]) -> None:
    with atomic_write(out / "demo.json") as file:
        json.dump(record, file, indent=2)
