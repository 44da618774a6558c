"""One run on disk: what it was made from, whether it is finished, and how it resumes.

    with Run(out, stage="sft", config=config, inputs={"base": base, "demos": demos}) as run:
        if run.finished: return
        state = run.restore()
        ... run.log(step, loss=loss); run.checkpoint(step, state) ...
        run.finish(results, Ending("fine-tuned on 1,204 conversations", next=[command("chat", out)]))

A run is finished only if run.json holds the same fingerprint: the hash of its stage, its config and the content of
every input. A checkpoint is used only under the same fingerprint. After Ctrl-C or SIGTERM the run saves, then stops.
"""

import hashlib
import json
import platform
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.options import Advanced, NonNegative, Seed, out_of_range
from tutelage.runs.checkpoint import load_checkpoint, save_checkpoint
from tutelage.runs.device import Device, choose_device, peak_memory_bytes
from tutelage.runs.ending import Ending
from tutelage.runs.identity import Inputs, difference, fingerprint, hash_inputs, plain_config
from tutelage.runs.log import MetricsFile, Progress
from tutelage.runs.record import RECORD, already_finished, files_of, finished_at, missing_file, read_run
from tutelage.runs.run_folder import KEPT_INPUTS, RunFolder

DIFFERS = "its settings or inputs differ"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of every stage. Raises InputError for a number outside its range."""

    seed: Seed = 0
    """Seeds the initial weights, the data order and sampling. Each of these has its own random generator."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Advanced[str] = "auto"
    """Precision of activations and matrix products: auto, fp32 or bf16. Trained weights and losses are always fp32."""
    overwrite: bool = False
    """Replace a run at --out that was made with other settings or inputs. Without this, the stage refuses to run. A
    folder that holds no run is never touched."""
    checkpoint_seconds: Advanced[NonNegative] = 20.0
    """Seconds between checkpoints: the most work that a crash can lose. Saving 4M parameters takes about .2 s."""

    def __post_init__(self) -> None:
        if wrong := out_of_range(self):
            raise InputError(wrong)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved a checkpoint."""


class Run:
    """One run directory. The top of this module shows how a stage uses it."""

    def __init__(self, out: Path, *, stage: str, config: RunConfig, inputs: Inputs, product: Path | None = None):
        """product: the one file that the stage writes beside its run directory `out`, if that is what it makes."""
        self.out, self.stage, self.config = out, stage, config
        self.product = product or out
        self.inputs = hash_inputs(inputs)
        self.fingerprint = fingerprint(stage, config, self.inputs)
        self.device: Device = choose_device(config.device, config.dtype)
        self.progress = Progress(stage)
        self.metrics = MetricsFile(out / "metrics.jsonl")
        self.begun, self.earlier_seconds = time.monotonic(), 0.0
        self.saved = time.monotonic()
        self.stop_requested = False
        self.folder = RunFolder(out)
        self.finished = self._prepare()

    def _prepare(self) -> bool:
        """Whether this run is already finished. Otherwise claim the folder, replacing another run if that is allowed.

        Raises InputError if the folder holds something else. All is looked at again under the lock, because the process
        that held it may have finished this run or another one meanwhile.
        """
        if self._is_finished():
            self.folder.tidy()
            return True
        self._replaces()
        self.folder.wait()
        try:
            if self._is_finished():
                self.folder.close(failed=True)
                return True
            if replaced := self._replaces():
                self.progress.say(f"{self.out}: {replaced}")
            self.folder.claim(self.fingerprint, replacing=bool(replaced))
        except BaseException:
            self.folder.close(failed=True)
            raise
        return False

    def _is_finished(self) -> bool:
        """Raises InputError if this run is finished but has lost files, unless it may be made again."""
        record = read_run(self.out)
        if not record or record["fingerprint"] != self.fingerprint or not self.product.exists():
            return False
        if lost := missing_file(self.out, record):
            if self.config.overwrite:
                return False
            raise InputError(
                f"{self.out}: finished on {finished_at(record)} UTC, but {lost}; restore the file, or give "
                "--overwrite to make the run again"
            )
        self.progress.say(f"{self.product}: {already_finished(record)}")
        return True

    def _replaces(self) -> str:
        """Which run this one replaces, in words; empty if none. Raises InputError if the folder may not be used."""
        record, folder = read_run(self.out), self.folder
        if record and record["fingerprint"] == self.fingerprint:
            lost = missing_file(self.out, record)
            return f"making the finished run again, because {lost}" if lost else ""
        if record or (folder.marked != self.fingerprint and folder.resumable):
            reason = difference(record, self.stage, self.config, self.inputs) if record else DIFFERS
            self._refuse_replacing(reason)
            return f"replacing another run ({reason})"
        if folder.marked is None and (problem := folder.foreign):
            move = "--overwrite replaces runs alone; " * self.config.overwrite + "choose another --out"
            raise InputError(f"{self.out}: {problem}; {move}")
        return ""

    def _refuse_replacing(self, reason: str) -> None:
        """Raises InputError if another run may not be replaced: without --overwrite, or because this one reads it."""
        if not self.config.overwrite:
            move = "choose another --out, or give --overwrite"
            raise InputError(f"{self.out}: another run is here ({reason}); {move}")
        out, kept = self.out.resolve(), (self.out / KEPT_INPUTS).resolve()
        for name, value in self.inputs.items():
            path = Path(value["path"]).resolve()
            if path.is_relative_to(out) and not path.is_relative_to(kept):
                raise InputError(f"{self.out}: is what --{name} reads, so it cannot be replaced; choose another --out")

    def __enter__(self) -> "Run":
        self.handlers = {s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if error is not None:
            self.progress.close()
        self.folder.close(failed=error is not None)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C stops at once, without saving
        self.stop_requested = True

    @property
    def seconds(self) -> float:
        """Time spent on this run, including the time before it was resumed."""
        return self.earlier_seconds + time.monotonic() - self.begun

    def generator(self, purpose: str) -> torch.Generator:
        """A seeded CPU generator for one purpose, so that no two purposes share a sequence of random numbers."""
        return torch.Generator().manual_seed(seed_for(self.config.seed, purpose))

    def restore(self) -> dict[str, Any] | None:
        """The state of the newest readable checkpoint; None for a fresh start. Rewinds metrics.jsonl to its step."""
        loaded = load_checkpoint(self.out / "checkpoints")
        if loaded is None:
            self.metrics.rewind(-1)
            return None
        state, damaged = loaded
        for line in damaged:
            self.progress.say(line)
        self.earlier_seconds = state.pop("seconds")
        self.metrics.rewind(state["step"])
        self.progress.say(f"{self.out}: resuming from step {state['step']}")
        return state

    def log(self, step: int, **metrics: Any) -> None:
        """Append one line to metrics.jsonl."""
        self.folder.begin()
        self.metrics.append(step, self.seconds, metrics)

    def checkpoint(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save if a checkpoint is due or a stop was requested. After a stop request, raise Interrupted."""
        if self.stop_requested or time.monotonic() - self.saved > self.config.checkpoint_seconds:
            self.folder.begin()
            save_checkpoint(self.out / "checkpoints", step, state() | {"step": step, "seconds": self.seconds})
            self.saved = time.monotonic()
        if self.stop_requested:
            raise Interrupted(f"{self.stage} stopped at step {step} and saved; run the same command again to resume")

    def finish(self, results: dict[str, Any], ending: Ending | None = None) -> None:
        """Write run.json, which makes the run finished, drop its checkpoints, and print the ending."""
        record = {
            "stage": self.stage,
            "config": plain_config(self.config),
            "inputs": self.inputs,
            "fingerprint": self.fingerprint,
            "package_version": version("tutelage"),
            "torch_version": torch.__version__,
            "device": {
                "kind": self.device.torch_device.type,
                "dtype": str(self.device.compute_dtype).removeprefix("torch."),
                "threads": self.device.threads,
                "machine": platform.processor() or platform.machine(),
            },
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": round(self.seconds, 2),
            "peak_memory_bytes": peak_memory_bytes(),
            "results": results,
            "files": files_of(self.out),
        }
        self.folder.begin()
        with atomic_write(self.out / RECORD) as file:
            json.dump(record, file, indent=2)
        shutil.rmtree(self.out / "checkpoints", ignore_errors=True)
        if ending:
            self.progress.end(ending.lines(self.product))


def seed_for(seed: int, purpose: str) -> int:
    """A 63-bit seed that differs for each purpose and is the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1
