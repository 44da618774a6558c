"""Measure what the server adds to a request: everything but the model, at a steady rate of requests.

    python benchmarks/serve_overhead.py [--rate 100] [--seconds 10] [--out runs/benchmarks]

The script starts a server process as `tutelage serve` does, with connections, authentication, limits, validation,
rendering and encoding in a process of their own, moderation, SQLite, JSON and one log line per request. The engine is
the tests' stub, which has its eight tokens at once. Requests are sent at fixed times over 16 loopback connections,
whether or not earlier ones have been answered. The first pass stores nothing, and the second one stores every answer.
Prints one Markdown row per pass with requests, errors, p50, p99 and maximum in milliseconds, and writes them to OUT
(record.py). The goal is p50 <= 4 and p99 <= 10 in the first pass.
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

TESTS = Path(__file__).parent.parent / "tests"
sys.path += [str(TESTS), str(TESTS / "server")]
from stub import StubEngine, StubModels  # noqa: E402

from tutelage.server.app import create_app  # noqa: E402
from tutelage.server.encoder import encoder_of  # noqa: E402
from tutelage.server.serve import ServeConfig, Server, listen  # noqa: E402
from tutelage.text.bpe import train_bpe  # noqa: E402
from tutelage.web import people  # noqa: E402
from tutelage.web.keys import open_store  # noqa: E402
from tutelage.web.logs import write_json  # noqa: E402


def serve(folder: Path, ready: "multiprocessing.Queue[tuple[str, str]]") -> None:
    """The server process; it puts its address and a key into `ready` when it accepts requests."""
    config = ServeConfig(port=0, data=folder)
    door = listen(config)
    database, keys = open_store(config.data, config.database)
    _, secret = keys.make(people.owner(database).id, "bench", requests_per_minute=10**8, tokens_per_minute=10**9)
    tokenizer = train_bpe([__doc__], 300)
    engine = StubEngine(tokenizer.encode("the cat sat on the mat")[:8])
    sys.stdout = sys.stderr = open(folder / "log", "w")  # noqa: SIM115 (stays open until the process ends)
    write_json(each_request=config.access_log)
    encoder = encoder_of(tokenizer)
    app = create_app(database, keys, StubModels(tokenizer, engine, encoder=encoder))
    encoder.start().result()
    app.state.text_work.start().result()
    ready.put((f"http://{config.host}:{door.getsockname()[1]}", secret))
    Server(app, config, door, []).run(sockets=[door])


@contextmanager
def stub_server() -> Iterator[tuple[str, str]]:
    """Start a server in its own process. Yields its address and a key."""
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
    """Send the requests. Returns their latencies in milliseconds, and how many failed."""
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
            await one(client)  # warm-up
        latencies.clear()
        begun, tasks = time.perf_counter(), []
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one(client)))
        await asyncio.gather(*tasks)
    return latencies, errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=100, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10, help="length of each of the two passes")
    add_out(parser)
    options = parser.parse_args()
    record, figures = Record(options.out / "serve_overhead", options), []
    record.say("| requests/s | stored | requests | errors | p50 ms | p99 ms | max ms |\n|---|---|---|---|---|---|---|")
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
