"""Check and measure structured output: answers to many JSON schemas, tokens per second, and the first token.

    python benchmarks/structured_output.py [--schemas 200] [--seed 0] [--rounds 3] [--streams 16] [--new 64]
                                           [--firsts 40] [--run RUN] [--out runs/benchmarks]

1. json_schemas.py makes the schemas. Each is answered with a limit of three times its shortest value's tokens: by a
   tiny model with random weights at temperatures 1 and 0, and by SmolLM2-135M-Instruct or RUN at temperature 1. A
   validator from elsewhere (jsonschema, with its formats) checks all that ended. Goal: all are valid, 95 % end.
2. `tutelage serve` streams answers of up to --new tokens, --streams at once, as free text and as JSON that fits a
   schema in turn. The tokens are those that the server counts. Goal: at most 15 % fewer tokens a second.
3. One request at a time, as free text and with a schema seen before in turn: the time to the first token. Goal: at most
   5 ms more. The first answer to a schema that was never seen is timed, too.

Prints Markdown tables and writes them to OUT (record.py).
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request as HTTPRequest
from urllib.request import urlopen

import torch
from json_schemas import schemas
from jsonschema import Draft202012Validator
from record import Record, add_out
from serving import ours, question

from tutelage.engine.engine import Engine, EngineConfig
from tutelage.engine.requests import Done, Event, Request, Token
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.runs.base import find_base
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.sampling.distribution import DistributionConfig
from tutelage.sampling.sampler import for_inference
from tutelage.server.grammar import json_schema_grammar
from tutelage.server.vocabulary import Vocabulary
from tutelage.stages.import_model import import_model
from tutelage.text.bpe import train_bpe
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

STORY = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "chapters": {
            "type": "array",
            "minItems": 2,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "text": {"type": "string"}, "year": {"type": "integer"}},
                "required": ["name", "text", "year"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["title", "chapters"],
    "additionalProperties": False,
}


def random_model(tokenizer: Tokenizer) -> GPT:
    """A tiny model with random weights, which writes anything that it may."""
    shape = dict(width=64, layers=2, heads=2, kv_heads=2, head_width=32, hidden=128, context=1024)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1))
    return for_inference(model)


def answers(model: GPT, tokenizer: Tokenizer, cases: list[tuple[str, Any, Any]], temperature: float) -> dict[str, Any]:
    """Answer every schema within three times its shortest value's tokens, and check the answers."""
    ends = tuple(dict.fromkeys((*tokenizer.end_ids, tokenizer.end_of_text_id)))
    served: Any = SimpleNamespace(
        tokenizer=tokenizer, vocabulary=Vocabulary(tokenizer, tokenizer.token_bytes()[: model.tokens], ends)
    )
    engine = Engine(model, EngineConfig(slots=16, context=1024))
    events: list[list[Event]] = []
    compiled = []
    for seed, (_, schema, value) in enumerate(cases):
        begun = time.perf_counter()
        grammar = json_schema_grammar(served, schema)
        compiled.append(1000 * (time.perf_counter() - begun))
        shortest = len(tokenizer.encode(json.dumps(value, separators=(",", ":"))))
        text = f"Answer with JSON that fits this schema, and nothing else: {json.dumps(schema)}"[:1000]
        prompt = tuple(encode_chat(tokenizer, [{"role": "user", "content": text}], True).ids[-600:])
        how, stop = DistributionConfig(temperature=temperature), frozenset(ends)
        events.append([])
        request = Request(prompt, 3 * shortest, how, seed, stop, constraint=grammar.begin())
        engine.submit(request, events[-1].append)
    while engine.step():
        pass
    engine.close()
    outcomes = Counter(outcome(tokenizer, schema, heard) for (_, schema, _), heard in zip(cases, events))
    return {"outcomes": outcomes, "milliseconds to compile": compiled}


def outcome(tokenizer: Tokenizer, schema: Any, heard: list[Event]) -> str:
    """valid or invalid, if the answer ended; otherwise why it did not."""
    last = heard[-1]
    assert isinstance(last, Done)
    if last.reason != "stop":
        return last.reason
    text = tokenizer.decode([event.id for event in heard if isinstance(event, Token)])
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return "valid" if validator.is_valid(json.loads(text)) else "invalid"


def chunks(address: str, key: str, text: str, new: int, schema: Any = None) -> Iterator[dict[str, Any]]:
    """Yield the chunks of one streamed answer; the last has the usage."""
    body: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": text}], "max_tokens": new}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    if schema:
        named = {"name": "answer", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    with urlopen(HTTPRequest(f"{address}/chat/completions", json.dumps(body).encode(), headers), timeout=600) as lines:
        yield from (json.loads(line[6:]) for line in lines if line.startswith(b"data: {"))


def rate(address: str, key: str, given: argparse.Namespace, schema: Any, first: int) -> float:
    """Tokens per second of many streams at once."""
    written = [0] * given.streams

    def ask(i: int) -> None:
        last = list(chunks(address, key, question(first + i), given.new, schema))[-1]
        written[i] = last["usage"]["completion_tokens"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(given.streams)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(written) / (time.perf_counter() - begun)


def first_token(address: str, key: str, text: str, schema: Any) -> float:
    """Milliseconds until the first chunk with text."""
    begun = time.perf_counter()
    for chunk in chunks(address, key, text, 4, schema):
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            return 1000 * (time.perf_counter() - begun)
    raise AssertionError("an answer without text")


def measure(folder: Path, given: argparse.Namespace) -> dict[str, list[float]]:
    """Rates and times of the server, free text and schemas in turn."""
    found: dict[str, list[float]] = {"free": [], "schema": [], "first free": [], "first schema": [], "first new": []}
    with ours(folder) as (address, key):
        for number in range(given.rounds + 1):
            for name, schema in (("free", None), ("schema", STORY)):
                found[name].append(rate(address, key, given, schema, 1000 * number + 100 * (name == "free")))
        for number in range(given.firsts + 3):
            new = STORY | {"description": f"number {number}"}
            for i, (name, schema) in enumerate((("free", None), ("schema", STORY), ("new", new))):
                text = question(10_000 + 3 * number + i)  # each has its own, so that no prompt is cached
                found[f"first {name}"].append(first_token(address, key, text, schema))
    warm = {"free": 1, "schema": 1}
    return {name: values[warm.get(name, 3) :] for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemas", type=int, default=200, help="number of schemas")
    parser.add_argument("--seed", type=int, default=0, help="seed of the schemas")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of many streams")
    parser.add_argument("--streams", type=int, default=16, help="streams at once")
    parser.add_argument("--new", type=int, default=64, help="most tokens of a streamed answer")
    parser.add_argument("--firsts", type=int, default=40, help="requests whose first token is timed")
    parser.add_argument("--run", type=Path, help="model to serve; default: SmolLM2-135M-Instruct")
    add_out(parser)
    given = parser.parse_args()
    record, cases = Record(given.out / "structured_output", given), schemas(given.schemas, given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.run or Path(scratch) / "smollm2").resolve()
        if given.run is None:
            import_model(find_base(Path("smollm2")), folder)
        figures = {"answers": check(record, folder, cases), "server": measure(folder, given)}
    say_speed(record, figures["server"])
    record.leave(figures)


def check(record: Record, folder: Path, cases: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    """Answer all schemas with each model."""
    record.say("| model | temperature | schemas | ended | valid of those | compile ms, median and longest |")
    record.say("|---|---|---|---|---|---|")
    texts = [json.dumps([schema, value]) for _, schema, value in cases] + [__doc__]
    small = train_bpe(texts, 600)
    model, tokenizer = load_policy(folder, choose_device("cpu", "bf16"))
    found = {}
    for name, played, reader, temperature in (
        ("random weights", random_model(small), small, 1.0),
        ("random weights", random_model(small), small, 0.0),
        (folder.name, for_inference(model), tokenizer, 1.0),
    ):
        result = answers(played, reader, cases, temperature)
        valid, invalid = result["outcomes"]["valid"], result["outcomes"]["invalid"]
        times = result["milliseconds to compile"]
        middle, longest = f"{statistics.median(times):.1f}", f"{max(times):.0f}"
        ended = f"{valid + invalid} | {valid} | {middle}, {longest}"
        record.say(f"| {name} | {temperature:g} | {len(cases)} | {ended} |")
        found[f"{name}, {temperature:g}"] = result
    return found


def say_speed(record: Record, found: dict[str, list[float]]) -> None:
    record.say("\n| | tokens/s, median | all | first token, ms, median |\n|---|---|---|---|")
    middle = {name: statistics.median(values) for name, values in found.items()}
    for name, label in (("free", "free text"), ("schema", "a schema seen before")):
        every = ", ".join(f"{value:.0f}" for value in sorted(found[name]))
        record.say(f"| {label} | {middle[name]:.0f} | {every} | {middle[f'first {name}']:.1f} |")
    record.say(f"| a new schema | | | {middle['first new']:.1f} |")
    record.say(f"\nTokens/s of a schema to free text: {middle['schema'] / middle['free']:.2f}")


if __name__ == "__main__":
    main()
