"""benchmarks/fuzz_readers.py in small: broken files end in success or in one line; another ending is noticed."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzz_readers
import pytest
from fuzz_readers import READERS, Reader, try_reader

from tutelage.errors import InputError

SLOW = ("run.json of a report", "evaluation.json", "metrics.jsonl")  # these draw curves
CASES = 60


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    fuzz_readers.make(folder)
    return folder


@pytest.mark.parametrize("name", READERS)
def test_every_case_ends_well(name: str, files: Path) -> None:
    cases = 2 if name in SLOW else CASES
    found = try_reader(files, name, range(cases))
    assert found.problems == [] and found.read + found.refused == cases


@pytest.mark.parametrize("name", READERS)
def test_the_sound_file_is_read(name: str, files: Path) -> None:
    READERS[name].read(files)


def wait(folder: Path) -> None:
    while True:
        pass


def sleep(folder: Path) -> None:
    time.sleep(1.2)


def take(folder: Path) -> None:
    bytes(random.Random(0).randbytes(1)) * (2**29 + 2**19)  # half a MiB for what the process gives back meanwhile


def panic(folder: Path) -> None:
    raise type("PanicException", (BaseException,), {})("a library")


def say(*lines: str) -> Callable[[Path], None]:
    def refuse(folder: Path) -> None:
        error = InputError("")
        error.args = ("\n".join(lines),)
        raise error

    return refuse


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda folder: {}["x"], "KeyError"),
        (panic, "PanicException"),
        (wait, "TooSlow"),
        (sleep, "1 s by the clock"),
        (take, "512 MiB"),
        (say("one", "two"), "not one line"),
        (say("x" * 2000), "2000 characters"),
    ],
)
def test_what_ends_otherwise_is_counted(read: Any, said: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "bad", replace(READERS["JSONL"], read=read))
    monkeypatch.setattr(fuzz_readers, "TIME", 0.2 if read in (wait, sleep) else 20.0)
    (problem,) = try_reader(files, "bad", range(1)).problems
    assert problem.startswith("bad, case 0: ") and said in problem


def test_a_case_can_be_repeated() -> None:
    """It depends on its number alone, and most cases differ."""
    reader: Reader = READERS["JSONL"]
    content = b'{"a": {"b": [1, 2, 3]}}\n' * 3
    made = [[reader.broken(content, random.Random(f"x/{i}")) for i in range(50)] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) > 35 and content not in made[0]


def test_every_field_is_broken_in_turn(files: Path) -> None:
    """The names of a config.json's fields, each of which is changed or left out in some case."""
    content = (files / "model" / "config.json").read_bytes()
    sound, touched = json.loads(content), set[str]()
    for broken in outputs(content, 1000):
        touched |= {name for name in sound if broken.get(name, "absent") != sound[name]}
    assert touched == set(sound)


def outputs(content: bytes, cases: int) -> Iterator[dict[str, Any]]:
    for case in range(cases):
        try:
            value = json.loads(fuzz_readers.broken_json(content, random.Random(f"config.json/{case}")))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value
