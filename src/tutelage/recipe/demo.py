"""The whole recipe, stage after stage, each a process of its own: from raw dialogue to an aligned chat model.

    data -> tokenizer -> pretrain -> SFT -> rank -> reward -> PPO, PPO-ptx -> evaluate -> report

Every stage is the very command a person would type. A stage is left alone when the hash of its config and inputs is
that of the run on disk; otherwise it is made again and the reason printed. Stop it however you like and run it again:
it goes on from the last checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.recipe.preset import BASED, PRESETS, Preset, seeded
from tutelage.runs.base import find_base
from tutelage.runs.device import DTYPES
from tutelage.runs.identity import Inputs, difference, fingerprint, hash_inputs
from tutelage.runs.log import clock
from tutelage.runs.machine import gemm_rate
from tutelage.runs.run import RunConfig, read_run
from tutelage.runs.summary import write_summary
from tutelage.stages.collect import source_files
from tutelage.stages.imported import ImportConfig

INTERRUPTED = 130  # exit status of a stage that was told to stop
STOP_PATIENCE = 60.0  # seconds a stage gets to save after Ctrl-C


@dataclass(frozen=True)
class Step:
    """One stage of the recipe: a verb of the command line, its files and its config."""

    name: str
    verb: str
    inputs: dict[str, Path | tuple[Path, ...]]
    out: Path
    record: Path  # where run.json lies
    config: RunConfig | None
    found: Inputs = field(default_factory=dict)  # inputs that the verb finds by itself

    def command(self) -> list[str]:
        """The arguments after `tutelage`."""
        words = [self.verb]
        if self.verb == "report":
            return [*words, str(self.out)]
        for name, given in self.inputs.items():
            paths = [given] if isinstance(given, Path) else list(given)
            words += [*([] if name == "policies" else [f"--{name}"]), *map(str, paths)]
        return [*words, "--out", str(self.out), *flags(self.config)]

    def reason_to_run(self) -> str | None:
        """None if the run on disk is this one, else why it is not."""
        found = read_run(self.record)
        if found is None or self.config is None:
            return "not made yet"
        inputs = hash_inputs({**self.inputs, **self.found})
        same = found["fingerprint"] == fingerprint(self.verb, self.config, inputs) and self.out.exists()
        return None if same else difference(found, self.verb, self.config, inputs)


def flags(config: RunConfig | None) -> list[str]:
    """A config as options: only what differs from the stage's own defaults."""
    words: list[str] = []
    for option in fields(config) if config else ():
        value, name = getattr(config, option.name), option.name.replace("_", "-")
        if value == option.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


@dataclass(frozen=True)
class Start:
    """What the user brings: a base model made elsewhere, demonstrations and pretraining text beside the demo's."""

    base: Path | None = None
    demos: tuple[Path, ...] = ()
    corpus: tuple[Path, ...] = ()


def steps(out: Path, preset: Preset, seed: int, start: Start = Start()) -> list[Step]:
    """The recipe in order."""
    data = out / "data"
    train, valid = start.corpus or (data / "corpus.train.jsonl",), data / "corpus.valid.jsonl"
    asked, demos = data / "prompts.train.jsonl", (data / "demonstrations.train.jsonl", *start.demos)
    ranked, panel = out / "comparisons.jsonl", data / "panel.json"
    words, sft, reward = out / "tokenizer", out / "sft", out / "reward"
    base = out / "imported" if start.base else out / "base"

    def step(name: str, verb: str, to: Path, config: RunConfig, **inputs: Path | tuple[Path, ...]) -> Step:
        return Step(name, verb, inputs, to, to.with_suffix(".run") if to.suffix else to, seeded(config, seed))

    rl: dict[str, Any] = {"policy": sft, "reward": reward, "prompts": (asked,), "judge": panel}
    taxed = start.corpus or (valid,)  # what alignment costs is measured on the text that the base is to keep
    tested: dict[str, Any] = {"panel": panel, "prompts": (data / "prompts.test.jsonl",), "heldout": taxed}
    if isinstance(preset.base, ImportConfig):
        assert start.base is not None
        made = [step("import", "import-model", base, preset.base, base=start.base)]
    else:
        tokenizer, pretrain = preset.base
        made = [
            step("tokenizer", "tokenizer", words, tokenizer, corpus=train),
            step("pretrain", "pretrain", base, pretrain, tokenizer=words, corpus=train, heldout=(valid,)),
        ]
    return [
        replace(step("data", "collect", data, preset.collect), found=source_files()),
        *made,
        step("sft", "sft", sft, preset.sft, base=base, demos=demos, heldout=(data / "demonstrations.valid.jsonl",)),
        step("rank", "rank", ranked, preset.rank, policy=sft, panel=panel, prompts=(asked,)),
        step("reward", "reward", reward, preset.reward, base=sft, comparisons=(ranked,), demos=demos, panel=panel),
        step("ppo", "ppo", out / "ppo", replace(preset.ppo, ptx=False), **rl),
        step("ppo-ptx", "ppo", out / "ppo-ptx", preset.ppo, **rl, corpus=train),
        step(
            "evaluate", "evaluate", out / "evaluate", preset.evaluate,
            policies=(out / "ppo", out / "ppo-ptx"), base=base, sft=sft, reward=reward, **tested,
        ),
        Step("report", "report", {}, out, out, None),
    ]  # fmt: skip


def demo(
    out: Path | None = None,
    seed: int = 0,
    preset: Literal["demo", "toy"] = "demo",
    base: Path | None = None,
    demos: tuple[Path, ...] = (),
    corpus: tuple[Path, ...] = (),
) -> None:
    """Raise a small ChatGPT from raw dialogue: the whole recipe, in minutes on two cores.

    Run it again after an interruption: it goes on where it was.

    out: runs/demo, or runs/demo-BASE with a base.
    base: start from this model (folder, GGUF file, smollm2, hub id) and train adapters, instead of pretraining one.
    demos: your own demonstrations, beside the demo's.
    corpus: your own pretraining text, instead of the demo's.

    Example: tutelage demo --out runs/demo --seed 0
    """
    begun = time.monotonic()
    out = out or Path("runs") / (f"demo-{base.resolve().name.removesuffix('.gguf')}" if base else "demo")
    sizes = (BASED if base else PRESETS)[preset]
    start = Start(find_base(base) if base else None, demos, corpus)
    record = read_record(out) or {"seed": seed, "stages": {}}
    record |= {"seed": seed, "gemm_gflops": {name: round(gemm_rate(dtype)) for name, dtype in DTYPES.items()}}
    rates = ", ".join(f"{name} {rate}" for name, rate in record["gemm_gflops"].items())
    print(f"tutelage demo -> {out}   {os.cpu_count()} cores, matrix products in GFLOP/s: {rates}", flush=True)
    conductor = Conductor(out, record, steps(out, sizes, seed, start), sizes.seconds)
    conductor.run_all()
    record["total_seconds"] = round(sum(s["seconds"] for s in record["stages"].values()), 1)
    write_record(out, record)
    write_summary(out)
    sitting = clock(time.monotonic() - begun)
    print(
        f"\ndone in {sitting} (all sittings: {clock(record['total_seconds'])}). "
        f"Read {out / 'report.html'}, and talk to it:\n"
    )
    print(f"    tutelage chat {out / 'ppo-ptx'}\n")


class Conductor:
    """Runs the steps one after another and keeps the one progress line."""

    def __init__(self, out: Path, record: dict[str, Any], plan: Sequence[Step], expected: dict[str, int]):
        self.out, self.record, self.plan, self.expected = out, record, plan, expected
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
                else:
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
        pace = (self.spent + running) / done if done > 5 else 1.0
        coming = sum(self.expected[s.name] for s in self.plan[self.plan.index(step) + 1 :])
        return pace * (coming + (1 - fraction) * self.expected[step.name])

    def line(self, text: str, keep: bool = False) -> None:
        """Overwrite the progress line on a terminal; elsewhere one line each."""
        if self.live:
            print(f"\r\x1b[2K{text}", end="\n" if keep else "", flush=True)
        else:
            print(text, flush=True)


def read_messages(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What a stage prints: JSON progress, or any other line as text."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            try:
                message = json.loads(line)
            except json.JSONDecodeError:
                message = None
            yield message if isinstance(message, dict) and "stage" in message else {"text": line.rstrip()}


def wait(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Exit status and peak resident bytes of a finished child."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def stop(process: subprocess.Popen[str]) -> None:
    """Let the stage save: a Ctrl-C in the terminal has reached it already, a signal to us alone has not."""
    if process.poll() is None:
        time.sleep(0.5)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


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
