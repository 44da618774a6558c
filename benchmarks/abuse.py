"""Measure what other callers notice while some send texts of 1.9 MB without a pause.

    python benchmarks/abuse.py [--callers 6] [--seconds 20] [--run RUN] [--out runs/benchmarks]

`tutelage serve` runs SmolLM2-135M-Instruct, or RUN. One key reads a stream, another client asks /healthz fifty times a
second. Then further keys send a text of 1.9 MB each, without a pause and over one connection each, to the routes that
read texts: chat, plain completions with several prompts, and moderation. These clients are processes of their own. The
keys have limits that nothing here reaches; in the last phase they have the default limits.

Prints one Markdown row per phase: the stream's longest gap between two pieces of text, the median gap, the time to the
first piece of a new answer, p50 and p99 of /healthz, and how many requests the callers had answered. Writes them to OUT
(record.py). The goals are a longest gap of 0.3 s and 50 ms for p99 of /healthz.
"""

import argparse
import http.client
import json
import multiprocessing
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from record import Record, add_out
from serving import ours, pieces, question

from tutelage.runs.base import find_base
from tutelage.stages.import_model import import_model

SIZE = 1_900_000
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Characters of a random text, which the tokenizer's cache of words does not help with.
ALPHABETS = (LETTERS + 6 * " ", "".join(map(chr, range(0x4E00, 0x5E00))), LETTERS, "0123456789+-*/()=; abcxyz\n")
ENDED = (OSError, http.client.HTTPException, KeyError)  # what a client sees when the server stops
UNLIMITED = ("--requests-per-minute", str(10**9), "--tokens-per-minute", str(10**12))


def bodies(number: int) -> list[tuple[str, bytes]]:
    """The requests that a caller repeats: (path, body)."""
    alphabet = ALPHABETS[number % len(ALPHABETS)]
    text = "".join(random.Random(number).choices(alphabet, k=SIZE // len(alphabet[0].encode())))
    third = text[: len(text) // 3]
    sent: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"model": "model", "messages": [{"role": "user", "content": text}]}),
        ("/v1/completions", {"model": "model", "prompt": [third] * 3}),
        ("/v1/moderations", {"input": text}),
    ]
    return [(path, json.dumps(body, ensure_ascii=False).encode()) for path, body in sent]


def abuse(address: str, key: str, number: int, until: float, answers: "multiprocessing.Queue[Counter[str]]") -> None:
    """Send the bodies in turn, as fast as they are answered."""
    host, counted, sent = urlsplit(address).netloc, Counter[str](), bodies(number)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    connection = http.client.HTTPConnection(host, timeout=120)
    while time.time() < until:
        path, body = sent[sum(counted.values()) % len(sent)]
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        response.read()
        counted[f"{response.status}"] += 1
    answers.put(counted)


class Reader(threading.Thread):
    """Reads one stream after the other, and notes when its pieces come."""

    def __init__(self, address: str, key: str):
        super().__init__(daemon=True)
        self.address, self.key = address, key
        self.gaps: list[float] = []
        self.firsts: list[float] = []

    def run(self) -> None:
        with suppress(*ENDED):
            for number in range(10**6):
                last = began = time.perf_counter()
                for _ in filter(None, pieces(self.address, self.key, "model", question(number), 400)):
                    now = time.perf_counter()
                    (self.firsts if last is began else self.gaps).append(now - last)
                    last = now


class Prober(threading.Thread):
    """Asks /healthz fifty times a second."""

    def __init__(self, address: str):
        super().__init__(daemon=True)
        self.host = urlsplit(address).netloc
        self.took: list[float] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        with suppress(*ENDED):
            while True:
                began = time.perf_counter()
                connection.request("GET", "/healthz")
                connection.getresponse().read()
                self.took.append(time.perf_counter() - began)
                time.sleep(max(0.0, 0.02 - self.took[-1]))


def make_key(data: Path, name: str, *limits: str) -> str:
    command = [sys.executable, "-m", "tutelage", "keys", "make", "--name", name, "--data", str(data), *limits]
    return re.findall(r"sk-[\w-]+", subprocess.run(command, capture_output=True, text=True, check=True).stdout)[-1]


def measure(address: str, reader: Reader, prober: Prober, keys: list[str], seconds: float) -> dict[str, Any]:
    """One phase: `seconds` with these keys sending. Returns the figures, times in milliseconds."""
    answers: multiprocessing.Queue[Counter[str]] = multiprocessing.Queue()
    until = time.time() + seconds + 3
    given = [(address, key, number, until, answers) for number, key in enumerate(keys)]
    callers = [multiprocessing.Process(target=abuse, args=each, daemon=True) for each in given]
    for caller in callers:
        caller.start()
    time.sleep(2)  # until all are sending
    for kept in (reader.gaps, reader.firsts, prober.took):
        kept.clear()
    time.sleep(seconds)
    gaps, firsts, took = ([1000 * t for t in kept] for kept in (reader.gaps, reader.firsts, prober.took))
    counted = sum((answers.get(timeout=120) for _ in callers), Counter[str]())
    for caller in callers:
        caller.join()
    return {"gaps": gaps, "firsts": firsts, "healthz": took, "answered": dict(counted)}


def row(phase: str, found: dict[str, Any]) -> str:
    cuts = statistics.quantiles(found["healthz"], n=100)
    gaps = f"{max(found['gaps']):.0f} | {statistics.median(found['gaps']):.0f}"
    first = f"{statistics.median(found['firsts']):.0f}" if found["firsts"] else "-"
    answered = ", ".join(f"{count} times {status}" for status, count in sorted(found["answered"].items())) or "-"
    return f"| {phase} | {gaps} | {first} | {cuts[49]:.1f} | {cuts[98]:.1f} | {answered} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", type=int, default=6, help="keys that send long texts")
    parser.add_argument("--seconds", type=float, default=20, help="length of each phase")
    parser.add_argument("--run", type=Path, help="model to serve; default: SmolLM2-135M-Instruct")
    add_out(parser)
    options = parser.parse_args()
    record, figures = Record(options.out / "abuse", options), {}
    columns = ("longest gap, ms", "median gap, ms", "first piece, ms", "/healthz p50, ms", "p99, ms", "answered")
    record.say(f"| phase | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    with tempfile.TemporaryDirectory() as place:
        folder, data = (options.run or Path(place) / "smollm2").resolve(), Path(place) / "data"
        if options.run is None:
            import_model(find_base(Path("smollm2")), folder)
        with ours(folder, slots=8, data=data) as (address, key):
            free = [make_key(data, f"caller {i}", *UNLIMITED) for i in range(options.callers)]
            limited = [make_key(data, f"limited {i}") for i in range(options.callers)]
            reader, prober = Reader(address, key), Prober(address)
            reader.start()
            prober.start()
            time.sleep(5)
            phases = {"alone": [], f"{options.callers} keys": free, f"{options.callers} keys, default limits": limited}
            for phase, keys in phases.items():
                figures[phase] = measure(address, reader, prober, keys, options.seconds)
                record.say(row(phase, figures[phase]))
    record.leave(figures)


if __name__ == "__main__":
    main()
