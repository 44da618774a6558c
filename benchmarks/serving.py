"""Measure tokens per second for many streams at once: our engine, `tutelage serve` and `transformers serve`.

    python benchmarks/serving.py [--rounds 3] [--streams 1 16 64] [--new 64] [--peer PYTHON] [--run RUN]
                                 [--out runs/benchmarks]

The model is SmolLM2-135M-Instruct in bf16, or RUN. Each stream is a separate conversation that asks for a long answer,
at temperature 1 and with at most --new tokens, all with one key. The prefill is part of the time. The three sides
alternate (A B A B ...). Each round is a new process, which warms up with one answer per stream. Over HTTP the script
reads the stream as it arrives and counts its text in the model's tokens afterwards, in the same way for both servers.

PYTHON is the interpreter of an environment with transformers[serving]. The default is this interpreter if it has the
packages; `--peer ""` means no peer. Prints a Markdown table with the median, all rounds, and the speed relative to one
stream and to the peer, and writes it to OUT (record.py).
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from record import Record, add_out

from tutelage.runs.base import find_base
from tutelage.stages.import_model import import_model
from tutelage.text.tokenizer import Tokenizer

PEER_NEEDS = ("transformers", "accelerate", "fastapi", "uvicorn", "openai")
TOPICS = "a lighthouse, two brothers, the last train, a stolen map, winter, an old clock, the river, a lost dog".split(
    ", "
)
ENGINE = """
import json, sys, time
from pathlib import Path
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.sampling.distribution import DistributionConfig
from tutelage.engine.engine import Engine, EngineConfig
from tutelage.engine.requests import Request, Token
from tutelage.sampling.sampler import for_inference
from tutelage.text.chat import encode_chat
folder, new, streams = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
model, tokenizer = load_policy(folder, choose_device("cpu", "bf16"))
engine = Engine(for_inference(model), EngineConfig(slots=64, context=1024, memory=3072))
def measure(questions):
    written = []
    begun = time.perf_counter()
    for seed, text in enumerate(questions):
        prompt = tuple(encode_chat(tokenizer, [{"role": "user", "content": text}], True).ids)
        engine.submit(Request(prompt, new, DistributionConfig(), seed), written.append)
    while engine.step():
        pass
    return sum(isinstance(event, Token) for event in written) / (time.perf_counter() - begun)
print(json.dumps([(measure(warm_up), measure(questions))[1] for warm_up, questions in streams]))
"""


def question(number: int) -> str:
    return f"Tell me a long story, number {number}, about {TOPICS[number % len(TOPICS)]}. Leave nothing out."


def questions(streams: int) -> tuple[list[str], list[str]]:
    """(questions to warm up with, questions to measure). All differ, so no prompt is in the prefix cache yet."""
    numbers = range(10 * streams, 12 * streams)
    return [question(n) for n in numbers[:streams]], [question(n) for n in numbers[streams:]]


def engine_alone(folder: Path, new: int, streams: list[int]) -> list[float]:
    given = json.dumps([questions(n) for n in streams])
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(folder), str(new), given], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def ours(folder: Path, slots: int = 64, data: Path | None = None) -> Iterator[tuple[str, str]]:
    """Start our server, with its data in `data` or a folder that goes away. Yields its address and a key."""
    with tempfile.TemporaryDirectory() as place:
        kept = str(data or place)
        command = [sys.executable, "-m", "tutelage", "serve", f"model={folder}", "--port", "0", "--data", kept]
        command += ["--slots", str(slots), "--context", "1024", "--memory", "3072", "--queue", "256", "--no-access-log"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout
                printed = "".join(server.stdout.readline() for _ in range(3))
                address, key = re.search(r"http\S+/v1", printed), re.search(r"API key\s+(\S+)", printed)
                assert address and key, printed
                yield address[0], key[1]
            finally:
                server.terminate()


@contextmanager
def theirs(folder: Path, python: str) -> Iterator[tuple[str, str]]:
    """Start transformers' server with continuous batching. Yields its address and an arbitrary key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "transformers.cli.transformers", "serve", str(folder), "--continuous-batching"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--device", "cpu", "--dtype", "bfloat16"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}/v1", "none"
        finally:
            server.terminate()


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the peer's server did not start; run its command by hand to see why"
        try:
            urlopen(address, timeout=5).close()
            return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(f"{address} does not answer")


def over_http(address: str, key: str, model: str, tokenizer: Tokenizer, new: int, streams: list[int]) -> list[float]:
    rates = []
    for sets in map(questions, streams):
        for texts in sets:  # the first one warms up
            begun, answers = time.perf_counter(), [""] * len(texts)

            def ask(i: int, text: str, answers: list[str] = answers) -> None:
                answers[i] = "".join(pieces(address, key, model, text, new))

            threads = [threading.Thread(target=ask, args=each) for each in enumerate(texts)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            rate = sum(len(tokenizer.encode(answer)) for answer in answers) / (time.perf_counter() - begun)
            assert all(answers), "a stream was empty"
        rates.append(rate)
    return rates


def pieces(address: str, key: str, model: str, text: str, new: int) -> Iterator[str]:
    """Yield the content of one streamed answer, piece by piece."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": new}
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = Request(f"{address}/chat/completions", json.dumps(body | {"temperature": 1.0}).encode(), headers)
    with urlopen(request, timeout=600) as response:
        for line in response:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                yield from (choice["delta"].get("content") or "" for choice in choices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="processes per side")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64], help="numbers of streams at once")
    parser.add_argument("--new", type=int, default=64, help="most tokens of an answer")
    here = sys.executable if all(map(find_spec, PEER_NEEDS)) else ""
    parser.add_argument("--peer", default=here, help='Python interpreter with transformers[serving]; "" for no peer')
    parser.add_argument("--run", type=Path, help="model to serve; default: SmolLM2-135M-Instruct")
    parser.add_argument("--engine-only", action="store_true", help="measure the engine alone, without servers")
    add_out(parser)
    given = parser.parse_args()
    servers = ["tutelage serve", *(["transformers serve"] if given.peer else [])]
    names = ["engine", *([] if given.engine_only else servers)]
    peer = (given.peer, PEER_NEEDS) if "transformers serve" in names else None
    record = Record(given.out / "serving", given, peer)
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.run or Path(scratch) / "smollm2").resolve()
        if given.run is None:
            import_model(find_base(Path("smollm2")), folder)
        tokenizer = Tokenizer.load(folder)
        for _ in range(given.rounds):
            for name, rounds in found.items():
                if name == "engine":
                    rounds.append(engine_alone(folder, given.new, given.streams))
                    continue
                server = ours(folder) if name == "tutelage serve" else theirs(folder, given.peer)
                model = "model" if name == "tutelage serve" else str(folder)
                with server as (address, key):
                    rounds.append(over_http(address, key, model, tokenizer, given.new, given.streams))
    say_table(record, found, given.streams)
    record.leave(found)


def say_table(record: Record, found: dict[str, list[list[float]]], streams: list[int]) -> None:
    medians = {
        name: [statistics.median(rates) for rates in zip(*rounds, strict=True)] for name, rounds in found.items()
    }
    peer = medians.get("transformers serve")
    record.say(
        "| | streams | tokens/s, median | all | times its first row | times the peer |\n|---|---|---|---|---|---|"
    )
    for name, rounds in found.items():
        for i, count in enumerate(streams):
            rates = ", ".join(f"{rate:.0f}" for rate in sorted(rates[i] for rates in rounds))
            middle = medians[name][i]
            beside = f"{middle / peer[i]:.2f}" if peer else "-"
            record.say(f"| {name} | {count} | {middle:.0f} | {rates} | {middle / medians[name][0]:.2f} | {beside} |")


if __name__ == "__main__":
    main()
