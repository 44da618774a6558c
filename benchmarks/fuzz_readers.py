"""Give every reader of files broken input, field by field, and check that each ends well.

    python benchmarks/fuzz_readers.py [--cases 1000] [--first 0] [--readers config.json gguf] [--out runs/benchmarks]

A case takes a small valid file, gives one of its fields a value of another type or size, or cuts or flips bytes, and
reads it. It must end in success or in one line of InputError, within MEMORY bytes and TIME seconds of the CPU. By the
clock it may take five times as long, because another process may have the CPU. A case depends on the reader's name and
the case's number alone, so `--readers NAME --first N --cases 1` repeats it. Prints a table and writes it to OUT
(record.py).
"""

import argparse
import faulthandler
import json
import logging
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from record import Record, add_out
from safetensors.torch import load_file, save_file

from tutelage.data.records import read_demonstrations
from tutelage.errors import InputError
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.moderation.classifier import BUCKETS, FlagClassifier
from tutelage.recipe.summary import read_recipe, summarise
from tutelage.runs.adapter import AdapterConfig, adapt, save_adapter
from tutelage.runs.checkpoint import load_checkpoint, save_checkpoint
from tutelage.runs.device import Device
from tutelage.runs.folder import load_policy, load_scorer, save_policy, save_scorer
from tutelage.runs.gguf_file import write_gguf
from tutelage.runs.run import Run, RunConfig
from tutelage.text.bpe import train_bpe

# Of one case: seconds of the CPU, so that other jobs do not count, and bytes beyond the process's own.
TIME, MEMORY = 5.0, 2**28
CPU = Device(torch.device("cpu"), torch.float32, 1, "the fuzz test")
DEEP = json.loads("[" * 500 + "]" * 500)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**60, 2**64, 10**30, -0.5, 0.5, 1e-9, 1e308, float("nan"), float("inf"), "",
    "x", "0", "\ud800", "line\nline", "../" * 9, "x" * 5000, [], [[]], [1, 2, 3], ["x"], {}, {"x": 1}, [None] * 300,
    DEEP,
)  # fmt: skip
MOST = 12  # members of a long list or object that are fields by themselves


@dataclass
class Tally:
    """How the cases of one reader ended."""

    read: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds
    memory: int = 0  # bytes, the most that a case took


@dataclass(frozen=True)
class Reader:
    """A file to break, and what reads it."""

    file: str
    broken: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]  # given the folder


# ---- breaking


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field; of long lists and objects the first and the last members."""
    yield path
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys if len(keys) <= MOST else [*keys[: MOST - 2], *keys[-2:]]:
            yield from places(value[key], (*path, key))


def changed(value: Any, path: tuple[Any, ...], chance: random.Random) -> Any:
    """The value with another one at this place, or without it."""
    if not path:
        return chance.choice(VALUES)
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and chance.random() < 0.15:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], chance)
    return copy


def broken_json(content: bytes, chance: random.Random) -> bytes:
    value = json.loads(content)
    if chance.random() < 0.1:
        return broken_bytes(content, chance)
    for _ in range(chance.choice((1, 1, 2))):
        value = changed(value, chance.choice(list(places(value))), chance)
    return json.dumps(value).encode()


def broken_bytes(content: bytes, chance: random.Random) -> bytes:
    """Cut short, with other bytes at some places, or with something in front."""
    at = chance.randrange(len(content))
    some = bytes(chance.randrange(256) for _ in range(chance.choice((1, 4, 8))))
    return chance.choice(
        [content[:at], content[:at] + some + content[at + len(some) :], some + content, b"", bytes(at)]
    )


def broken_safetensors(content: bytes, chance: random.Random) -> bytes:
    """Another header, field by field, or another length of the header, or other bytes."""
    size = struct.unpack("<Q", content[:8])[0]
    kind = chance.random()
    if kind < 0.2:
        return broken_bytes(content, chance)
    if kind < 0.3:
        return struct.pack("<Q", chance.choice((0, 1, size - 1, size + 1, 2**40, 2**63))) + content[8:]
    header = broken_json(content[8 : 8 + size], chance)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def broken_lines(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    lines[at] = broken_json(lines[at], chance) + b"\n"
    return b"".join(lines)


def broken_weights(content: bytes, chance: random.Random) -> bytes:
    """Numbers that are no weights: NaN, infinity and other types, in one tensor of a sound file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        path.write_bytes(content)
        tensors = load_file(path)
        name = chance.choice(sorted(tensors))
        kinds = [torch.int8, torch.int64, torch.bool, torch.complex64, torch.bfloat16, torch.float64]
        if chance.random() < 0.5:
            tensors[name].view(-1)[chance.randrange(tensors[name].numel())] = chance.choice(
                (float("nan"), float("inf"))
            )
        elif chance.random() < 0.5:
            tensors[name] = tensors[name].to(chance.choice(kinds))
        else:
            tensors[name] = tensors[name].reshape(chance.choice(((-1,), (1, -1), (-1, 1, 1))))
        save_file(tensors, path)
        return path.read_bytes()


GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


class GGUF:
    """A GGUF file in parts: counts, lengths, keys, types and values, each of which can be exchanged."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0
        self.parts: list[bytes] = [self.take(n) for n in (4, 4, 8, 8)]
        self.values: list[tuple[int, int]] = []  # the parts from the type of a value to its end
        tensors, keys = (struct.unpack("<Q", part)[0] for part in self.parts[2:4])
        for _ in range(keys):
            self.string()
            begin = len(self.parts)
            self.value(self.number(4))
            self.values.append((begin, len(self.parts)))
        for _ in range(tensors):
            self.string()
            for _ in range(self.number(4)):
                self.number(8)
            self.number(4), self.number(8)
        self.parts.append(content[self.at :])

    def take(self, size: int) -> bytes:
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, size: int) -> int:
        self.parts.append(self.take(size))
        return int.from_bytes(self.parts[-1], "little")

    def string(self) -> None:
        self.parts.append(self.take(self.number(8)))

    def value(self, kind: int) -> None:
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            inner, count = self.number(4), self.number(8)
            for _ in range(count):
                self.value(inner)
        else:
            self.parts.append(self.take(GGUF_SIZES[kind]))


def gguf_value(chance: random.Random) -> bytes:
    """A value of any type, with the type in front."""
    kind = chance.choice([*GGUF_SIZES, STRING, ARRAY])
    if kind == STRING:
        text = chance.choice((b"", b"x", b"\xff\xfe", b"llama", b"x" * 3000))
        return struct.pack("<IQ", kind, len(text)) + text
    if kind == ARRAY:
        count = chance.choice((0, 1, 5))
        return struct.pack("<IIQ", kind, 4, count) + bytes(4 * count)
    size = GGUF_SIZES[kind]
    return struct.pack("<I", kind) + chance.choice(
        (bytes(size), b"\xff" * size, b"\x01" + bytes(size - 1), b"\x7f" * size)
    )


def broken_gguf(content: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.1:
        return broken_bytes(content, chance)
    file = GGUF(content)
    parts = list(file.parts)
    if chance.random() < 0.5:
        begin, end = chance.choice(file.values)
        parts[begin:end] = [gguf_value(chance)]
    else:
        small = [i for i, part in enumerate(parts[:-1]) if i < 60 or i > len(parts) - 60]
        at = chance.choice(small)
        size = len(parts[at])
        other = chance.choice(
            (bytes(size), b"\xff" * size, b"\x02" + bytes(max(0, size - 1)), bytes(max(0, size - 1)) + b"\x10")
        )
        parts[at] = other[:size]
    return b"".join(parts)


# ---- the files, all sound


def make(folder: Path) -> None:
    """One of everything that is read."""
    tokenizer = train_bpe(["the cat sat on the mat, and the dog?"] * 4, 270)
    shape = GPTConfig(
        vocab_size=270, width=16, layers=2, heads=2, kv_heads=1, head_width=8, hidden=24, context=32, tied=False
    )
    model = GPT(shape).initialise(torch.Generator().manual_seed(0))
    save_policy(folder / "model", model, tokenizer)
    neo = GPTConfig(
        vocab_size=270, width=16, layers=2, heads=2, kv_heads=2, head_width=8, hidden=24, context=32, norm="layer",
        learned_positions=True, mlp="gelu", biases=True,
    )  # fmt: skip
    save_policy(folder / "gpt2", GPT(neo).initialise(torch.Generator().manual_seed(0)), tokenizer)
    scorer = ScalarGPT(model, 0.5, 1.0).initialise(torch.Generator().manual_seed(1))
    save_scorer(folder / "scorer", scorer, tokenizer)
    write_gguf(folder / "model.gguf", model, tokenizer, "f16")
    weights = load_file(folder / "model" / "model.safetensors")
    shutil.copytree(folder / "model", folder / "shards")
    (folder / "shards" / "model.safetensors").unlink()
    for i, part in enumerate((sorted(weights)[:9], sorted(weights)[9:])):
        save_file({name: weights[name] for name in part}, folder / "shards" / f"part-{i}.safetensors", {"format": "pt"})
    index = {name: f"part-{int(name in sorted(weights)[9:])}.safetensors" for name in weights}
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    (folder / "shards" / "model.safetensors.index.json").write_text(text)
    adapted = adapt(model, AdapterConfig(lora_rank=2, lora_targets=("q", "down")), torch.Generator().manual_seed(2))
    save_adapter(folder / "adapter", adapted, folder / "model")
    demos = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "source": "x"}
    ]
    (folder / "demos.jsonl").write_text("".join(json.dumps(record) + "\n" for record in demos * 3))
    state = {"step": 2, "seconds": 1.0, "training": {"weights": torch.ones(3), "moments": [1, 2.5, None, "x"]}}
    for step in (1, 2):
        save_checkpoint(folder / "checkpoints", step, state)
    FlagClassifier(("hate",), torch.ones(1, BUCKETS).numpy(), torch.ones(1).numpy(), 3).save(folder / "flags")
    quiet(lambda: start(folder, None))
    (folder / "recipe" / "sft" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n')
    (folder / "recipe" / "evaluate").mkdir()
    row = {"gold_win_rate": 0.5, "gold_win_rate_ci": [0.4, 0.6], "reward": 1.0, "kl": 2.0}
    samples = [{"prompt": [{"role": "user", "content": "hi"}], "answers": {"sft": "hello"}}]
    report = {"models": {"sft": row}, "samples": samples, "prompts": 1}
    (folder / "recipe" / "evaluate" / "evaluation.json").write_text(json.dumps(report))


def start(folder: Path, _: object) -> None:
    """A run that is finished at once, unless it is finished already."""
    out = folder / "recipe" / "sft"
    with Run(
        out, stage="sft", config=RunConfig(device="cpu", dtype="fp32"), inputs={"demos": folder / "demos.jsonl"}
    ) as run:
        if not run.finished:
            run.finish({"parameters": 10, "accuracy": 0.5})


def quiet(call: Callable[[], Any]) -> Any:
    """Without what it prints."""
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return call()


def policy(name: str) -> Callable[[Path], object]:
    return lambda folder: load_policy(folder / name, CPU)


def recipe(folder: Path) -> object:
    from tutelage.recipe.report import ReportConfig, render

    found = read_recipe(folder / "recipe")
    return summarise(found), render(found, ReportConfig())


READERS = {
    "config.json": Reader("model/config.json", broken_json, policy("model")),
    "config.json of a GPT-2": Reader("gpt2/config.json", broken_json, policy("gpt2")),
    "config.json of a reward model": Reader(
        "scorer/config.json", broken_json, lambda folder: load_scorer(folder / "scorer", CPU)
    ),
    "tokenizer_config.json": Reader("model/tokenizer_config.json", broken_json, policy("model")),
    "tokenizer.json": Reader("model/tokenizer.json", broken_json, policy("model")),
    "generation_config.json": Reader("model/generation_config.json", broken_json, policy("model")),
    "model.safetensors": Reader("model/model.safetensors", broken_safetensors, policy("model")),
    "weights": Reader("model/model.safetensors", broken_weights, policy("model")),
    "model.safetensors.index.json": Reader("shards/model.safetensors.index.json", broken_json, policy("shards")),
    "GGUF": Reader("model.gguf", broken_gguf, policy("model.gguf")),
    "adapter_config.json": Reader("adapter/adapter_config.json", broken_json, policy("adapter")),
    "adapter_model.safetensors": Reader("adapter/adapter_model.safetensors", broken_safetensors, policy("adapter")),
    "run.json": Reader("recipe/sft/run.json", broken_json, lambda folder: quiet(lambda: start(folder, None))),
    "run.json of a report": Reader("recipe/sft/run.json", broken_json, recipe),
    "evaluation.json": Reader("recipe/evaluate/evaluation.json", broken_json, recipe),
    "metrics.jsonl": Reader("recipe/sft/metrics.jsonl", broken_lines, recipe),
    "state.json": Reader(
        "checkpoints/00000002/state.json", broken_json, lambda folder: load_checkpoint(folder / "checkpoints")
    ),
    "state.safetensors": Reader(
        "checkpoints/00000002/state.safetensors",
        broken_safetensors,
        lambda folder: load_checkpoint(folder / "checkpoints"),
    ),
    "JSONL": Reader("demos.jsonl", broken_lines, lambda folder: read_demonstrations([folder / "demos.jsonl"])),
    "flags.safetensors": Reader(
        "flags/flags.safetensors", broken_safetensors, lambda folder: FlagClassifier.load(folder / "flags")
    ),
}


# ---- the cases


def try_reader(folder: Path, name: str, cases: range) -> Tally:
    """Break the reader's file in so many ways. The file is sound again afterwards."""
    reader, tally = READERS[name], Tally()
    path = folder / reader.file
    sound = path.read_bytes()
    try:
        for case in cases:
            path.write_bytes(reader.broken(sound, random.Random(f"{name}/{case}")))
            run_case(reader, folder, f"{name}, case {case}", tally)
    finally:
        path.write_bytes(sound)
    return tally


def run_case(reader: Reader, folder: Path, title: str, tally: Tally) -> None:
    before, begun, clock = reset_peak(), time.process_time(), time.monotonic()
    try:
        with limited(TIME):
            reader.read(folder)
        tally.read += 1
    except InputError as error:
        tally.refused += 1
        if "\n" in str(error) or len(str(error)) > 1000:
            tally.problems.append(f"{title}: not one line: {len(str(error))} characters: {error}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        tally.problems.append(f"{title}: {type(error).__name__}: {error}")
    tally.slowest = max(tally.slowest, time.process_time() - begun)
    if time.monotonic() - clock > 5 * TIME:
        tally.problems.append(f"{title}: {time.monotonic() - clock:.0f} s by the clock")
    tally.memory = max(tally.memory, peak() - before)
    if peak() - before > MEMORY:
        tally.problems.append(f"{title}: {(peak() - before) >> 20} MiB")


class TooSlow(BaseException):
    """A case took longer than TIME."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise TooSlow(f"longer than {seconds} s")

    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(20 * seconds, exit=True)  # for a library that does not return
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


def reset_peak() -> int:
    """Let the peak memory be the current one, and return it in bytes; 0 where the system cannot."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="cases of each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--readers", nargs="*", default=list(READERS), help="names of readers; all by default")
    add_out(parser)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    record = Record(options.out / "fuzz_readers", options)
    record.say("| reader | cases | read | refused in one line | anything else | slowest, ms | most memory, MiB |")
    record.say("|---|---|---|---|---|---|---|")
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as place:
        make(Path(place))
        for name in options.readers:
            tallies[name] = found = try_reader(Path(place), name, range(options.first, options.first + options.cases))
            cells = [name, options.cases, found.read, found.refused, len(found.problems)]
            cells += [f"{1000 * found.slowest:.0f}", found.memory >> 20]
            record.say(f"| {' | '.join(map(str, cells))} |")
    record.leave({name: vars(tally) for name, tally in tallies.items()})
    problems = [problem for tally in tallies.values() for problem in tally.problems]
    print("\n".join(problem[:300] for problem in problems[:50]), file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
