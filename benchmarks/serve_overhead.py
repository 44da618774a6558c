"""What the server adds to an answer: everything but the model, at a steady rate of requests.

    python benchmarks/serve_overhead.py [--rate 100] [--seconds 10] [--out runs/benchmarks]

A real server process, as `tutelage serve` starts it (connections, authentication, limits, validation, moderation,
SQLite, JSON, a log line per request) with the tests' stub engine, which has its eight tokens at once. Requests leave on
a clock, whether earlier ones have been answered or not, over 16 connections on loopback; first nothing is stored, then
every answer is. Prints a Markdown row for each: requests, errors, p50, p99 and the most in milliseconds; and leaves
them in OUT (record.py). Goal: p50 <= 8, p99 <= 30.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from record import Record, add_out

sys.path.append(str(Path(__file__).parent.parent / "tests" / "server"))
from stub import StubEngine, StubModels  # noqa: E402

from tutelage.server.app import create_app  # noqa: E402
from tutelage.server.serve import ServeConfig, Server, listen  # noqa: E402
from tutelage.text.tokenizer import train_bpe  # noqa: E402
from tutelage.web import people  # noqa: E402
from tutelage.web.keys import open_store  # noqa: E402
from tutelage.web.logs import write_json  # noqa: E402


def serve(folder: Path, ready: "multiprocessing.Queue[tuple[str, str]]") -> None:
    """The server's process; it says its address and its key when requests may come."""
    config = ServeConfig(port=0, data=folder)
    door = listen(config)
    database, keys = open_store(config.data, config.database)
    _, secret = keys.make(people.owner(database).id, "bench", requests_per_minute=10**8, tokens_per_minute=10**9)
    tokenizer = train_bpe([__doc__], 300)
    engine = StubEngine(tokenizer.encode("the cat sat on the mat")[:8])
    sys.stdout = sys.stderr = open(folder / "log", "w")  # noqa: SIM115 (lives as long as the process)
    write_json(each_request=config.access_log)
    app = create_app(database, keys, StubModels(tokenizer, engine))
    ready.put((f"http://{config.host}:{door.getsockname()[1]}", secret))
    Server(app, config, door, []).run(sockets=[door])


@contextmanager
def stub_server() -> Iterator[tuple[str, str]]:
    """A server in a process of its own: its address and a key."""
    with tempfile.TemporaryDirectory() as folder:
        ready: multiprocessing.Queue[tuple[str, str]] = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(Path(folder), ready), daemon=True)
        server.start()
        try:
            yield ready.get(timeout=60)
        finally:
            server.terminate()
            server.join()


async def load(address: str, secret: str, rate: float, seconds: float, store: bool) -> tuple[list[float], int]:
    """Latencies in milliseconds, and how many requests failed."""
    body = {"model": "stub", "messages": [{"role": "user", "content": "where is the cat?"}], "store": store}
    headers = {"authorization": f"Bearer {secret}"}
    limits = httpx2.Limits(max_connections=16, max_keepalive_connections=16)
    latencies: list[float] = []
    errors = 0

    async def one(client: httpx2.AsyncClient) -> None:
        nonlocal errors
        begun = time.perf_counter()
        response = await client.post("/v1/chat/completions", json=body)
        latencies.append(1000 * (time.perf_counter() - begun))
        errors += response.status_code != 200

    async with httpx2.AsyncClient(base_url=address, headers=headers, limits=limits) as client:
        for _ in range(50):
            await one(client)  # warm
        latencies.clear()
        begun, tasks = time.perf_counter(), []
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one(client)))
        await asyncio.gather(*tasks)
    return latencies, errors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    add_out(parser)
    options = parser.parse_args()
    record, figures = Record(options.out / "serve_overhead", options), []
    record.say("| requests/s | stored | requests | errors | p50 ms | p99 ms | most ms |\n|---|---|---|---|---|---|---|")
    with stub_server() as (address, secret):
        for store in (False, True):
            latencies, errors = asyncio.run(load(address, secret, options.rate, options.seconds, store))
            cuts = statistics.quantiles(latencies, n=100)
            counts = f"{options.rate:g} | {'yes' if store else 'no'} | {len(latencies)} | {errors}"
            record.say(f"| {counts} | {cuts[49]:.1f} | {cuts[98]:.1f} | {max(latencies):.1f} |")
            figures.append({"stored": store, "errors": errors, "milliseconds": latencies})
    record.leave(figures)


if __name__ == "__main__":
    main()
