"""One run on disk: what it was made from, whether it is finished, and how it resumes.

    with Run(out, stage="sft", config=config, inputs={"base": base, "demos": demos}) as run:
        if run.finished: return
        state = run.restore()
        ... run.log(step, loss=loss); run.checkpoint(step, state) ...
        run.finish(results, Ending("fine-tuned on 1,204 conversations", next=[command("chat", out)]))

A run is finished only if run.json holds the same fingerprint: the hash of its stage, its config and the content of
every input. A checkpoint is used only under the same fingerprint. After Ctrl-C or SIGTERM the run saves, then stops.
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
from tutelage.options import Advanced
from tutelage.runs.checkpoint import load_checkpoint, save_checkpoint
from tutelage.runs.device import Device, choose_device, peak_memory_bytes
from tutelage.runs.ending import Ending
from tutelage.runs.identity import Inputs, difference, fingerprint, hash_inputs, plain_config
from tutelage.runs.log import MetricsFile, Progress

LOCK_PATIENCE = 15.0  # seconds; a stage whose demo was killed ends when it next prints progress
AT_LEAST_ONE = (
    "tokens batch minibatch epochs iterations count answers max_tokens max_prompt vocab_size width layers heads "
    "kv_heads head_width hidden context evaluate_every heldout_windows per_conversation samples"
).split()


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of every stage. Raises InputError for a number below its minimum."""

    seed: int = 0
    """Seeds the initial weights, the data order and sampling. Each of these has its own random generator."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Advanced[str] = "auto"
    """Precision of activations and matrix products: auto, fp32 or bf16. Trained weights and losses are always fp32."""
    overwrite: bool = False
    """Replace a run at --out that was made with other settings or inputs. Without this, the stage refuses to run."""
    checkpoint_seconds: Advanced[float] = 20.0
    """Seconds between checkpoints: the most work that a crash can lose. Saving 4M parameters takes about .2 s."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 1 if name in AT_LEAST_ONE else 0
            if isinstance(value, int | float) and not value >= least:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}")


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
        self.lock: IO[str] | None = None
        self.finished = self._prepare() and self.product.exists()
        if self.finished:
            self.progress.say(f"{self.product}: already finished with these settings and inputs; nothing to do")

    def _prepare(self) -> bool:
        """Whether this run is already finished. Otherwise lock the folder, after removing another run if allowed."""
        record = read_run(self.out)
        if record and record["fingerprint"] == self.fingerprint:
            return True
        marker = self.out / "checkpoints" / "fingerprint"  # the run that the checkpoints belong to
        marked = marker.read_text(encoding="utf-8") if marker.is_file() else None
        has_checkpoint = any(path.is_dir() for path in marker.parent.iterdir()) if marked else False
        if record or (has_checkpoint and marked != self.fingerprint):
            reason = "its settings or inputs differ"
            if record:
                reason = difference(record, self.stage, self.config, self.inputs)
            if not self.config.overwrite:
                move = "choose another --out, or give --overwrite"
                raise InputError(f"{self.out}: another run is here ({reason}); {move}")
            self.progress.say(f"{self.out}: replacing another run ({reason})")
            self._lock()
            self._clear()
        elif not marked and self.out.exists() and any(self.out.iterdir()) and not self.config.overwrite:
            raise InputError(f"{self.out}: the folder is not empty and holds no run; choose another --out")
        self._lock()
        with atomic_write(marker) as file:
            file.write(self.fingerprint)
        return False

    def _clear(self) -> None:
        """Remove everything except the lock that this process holds."""
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
        """Allow one process per run directory. The system releases the lock when the process ends, however it ends."""
        if self.lock is not None:
            return None
        (self.out / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.lock = open(self.out / "checkpoints" / "lock", "w")  # noqa: SIM115 - open for the life of the run
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                return fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    problem = "another process is working on this run; wait until it ends, or stop it"
                    raise InputError(f"{self.out}: {problem}") from None
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
        self.metrics.append(step, self.seconds, metrics)

    def checkpoint(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Save if a checkpoint is due or a stop was requested. After a stop request, raise Interrupted."""
        if self.stop_requested or time.monotonic() - self.saved > self.config.checkpoint_seconds:
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
    """run.json of a finished run; None if there is none or it is not a run's record."""
    try:
        record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    known = isinstance(record, dict) and record.keys() >= {"stage", "config", "inputs", "fingerprint"}
    return record if known else None
