"""One run on disk: what it is made from, whether it is finished, where it can go on.

    with Run(out, stage="sft", config=config, inputs={"base": base, "demos": demos}) as run:
        if run.finished: return
        state = run.restore()
        ... run.log(step, loss=loss); run.checkpoint(step, state) ...
        run.finish(results, Ending("fine-tuned on 1,204 conversations", next=[command("chat", out)]))

A run is finished only if run.json names the same fingerprint: the hash of its stage, its config and every input's
content. A checkpoint counts only under the same fingerprint. Ctrl-C and SIGTERM save before they stop.
"""

import fcntl
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
from typing import IO, Any

import torch

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.runs.checkpoint import load_checkpoint, save_checkpoint
from tutelage.runs.device import Device, choose_device, peak_memory_bytes
from tutelage.runs.ending import Ending
from tutelage.runs.identity import Inputs, difference, fingerprint, hash_inputs, plain_config
from tutelage.runs.log import MetricsFile, Progress

LOCK_PATIENCE = 15.0  # seconds: a stage whose demo was killed ends at its next line of progress
BELOW_ZERO = ("missing_end",)  # the one setting that may be negative
AT_LEAST_ONE = (
    "tokens", "batch", "minibatch", "epochs", "iterations", "count", "answers", "max_tokens", "max_prompt",
    "vocab_size", "width", "layers", "heads", "kv_heads", "head_width", "hidden", "context", "evaluate_every",
    "heldout_windows", "per_conversation", "samples",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every stage can be told. Raises InputError for a number that is too small to mean anything."""

    seed: int = 0
    """Seeds initial weights, data order and sampling; each purpose has a generator of its own."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """Precision of activations and products: auto, fp32 or bf16. Weights and losses are fp32 always."""
    overwrite: bool = False
    """Replace a run made with other settings at --out; without it such a run is refused."""
    checkpoint_seconds: float = 20.0
    """Most work that a kill -9 or a power cut can cost; one save takes about .2 s for 4M parameters."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 1 if name in AT_LEAST_ONE else 0
            if isinstance(value, int | float) and name not in BELOW_ZERO and not value >= least:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}")


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and has saved what it had."""


class Run:
    """See the module's opening for its life."""

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
        self.lock: IO[str] | None = None
        self.finished = self._prepare() and self.product.exists()
        if self.finished:
            self.progress.say(f"{self.product}: already finished with these settings and inputs; nothing to do")

    def _prepare(self) -> bool:
        """True when the same run is finished already. Clears away a run made otherwise, if allowed."""
        found = read_run(self.out)
        mark = self.out / "checkpoints" / "fingerprint"
        marked = mark.read_text(encoding="utf-8") if mark.is_file() else None
        if found and found["fingerprint"] == self.fingerprint:
            return True
        begun = any(path.is_dir() for path in mark.parent.iterdir()) if marked else False
        if found or (begun and marked != self.fingerprint):
            reason = (
                difference(found, self.stage, self.config, self.inputs) if found else "its settings or inputs differ"
            )
            if not self.config.overwrite:
                raise InputError(
                    f"{self.out}: another run is here ({reason}); choose another --out, or give --overwrite"
                )
            self.progress.say(f"{self.out}: made again, as {reason}")
            self._lock()
            self._clear()
        elif not marked and self.out.exists() and any(self.out.iterdir()) and not self.config.overwrite:
            raise InputError(f"{self.out}: the folder is not empty and holds no run; choose another --out")
        self._lock()
        with atomic_write(mark) as file:
            file.write(self.fingerprint)
        return False

    def _clear(self) -> None:
        """Remove everything but the lock that this process holds."""
        for path in self.out.iterdir():
            if path.name == "checkpoints":
                for old in path.iterdir():
                    if old.name != "lock":
                        shutil.rmtree(old) if old.is_dir() else old.unlink()
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _lock(self) -> None:
        """One process per run directory; the system lets go when the process ends, however it ends."""
        if self.lock is not None:
            return None
        (self.out / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.lock = open(self.out / "checkpoints" / "lock", "w")  # noqa: SIM115 - held for the life of the run
        patience = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                return fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > patience:
                    line = "another process is working on this run; wait for it or end it"
                    raise InputError(f"{self.out}: {line}") from None
            time.sleep(0.2)

    def __enter__(self) -> "Run":
        self.handlers = {s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.lock is not None:
            self.lock.close()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step to end
        self.stop_requested = True

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its sittings."""
        return self.earlier_seconds + time.monotonic() - self.begun

    def generator(self, purpose: str) -> torch.Generator:
        """A seeded CPU generator for one purpose, so that two purposes never share a stream."""
        return torch.Generator().manual_seed(seed_for(self.config.seed, purpose))

    def restore(self) -> dict[str, Any] | None:
        """The state to go on from, or None for a fresh start."""
        loaded = load_checkpoint(self.out / "checkpoints")
        if loaded is None:
            self.metrics.rewind(-1)
            return None
        state, damaged = loaded
        for line in damaged:
            self.progress.say(line)
        self.earlier_seconds = state.pop("seconds")
        self.metrics.rewind(state["step"])
        self.progress.say(f"{self.out}: going on from step {state['step']}")
        return state

    def log(self, step: int, **metrics: Any) -> None:
        """Append one line to metrics.jsonl."""
        self.metrics.append(step, self.seconds, metrics)

    def checkpoint(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save if it is time to, or if somebody asked to stop; then stop by raising Interrupted."""
        if self.stop_requested or time.monotonic() - self.saved > self.config.checkpoint_seconds:
            save_checkpoint(self.out / "checkpoints", step, state() | {"step": step, "seconds": self.seconds})
            self.saved = time.monotonic()
        if self.stop_requested:
            raise Interrupted(f"{self.stage} stopped at step {step} and saved; run the same command again to go on")

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
        }
        with atomic_write(self.out / "run.json") as file:
            json.dump(record, file, indent=2)
        shutil.rmtree(self.out / "checkpoints", ignore_errors=True)
        if ending:
            self.progress.end(ending.lines(self.product))


def seed_for(seed: int, purpose: str) -> int:
    """A 63-bit seed that differs for each purpose and is the same in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


def read_run(out: Path) -> dict[str, Any] | None:
    """run.json of a finished run; None if there is none, or it is not ours."""
    try:
        found = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    known = isinstance(found, dict) and found.keys() >= {"stage", "config", "inputs", "fingerprint"}
    return found if known else None
