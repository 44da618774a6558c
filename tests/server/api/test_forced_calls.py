"""Calls that a model with random weights is held to, in every syntax: they are valid whatever it draws."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import AddedToken
from tool_templates import KNOWING, knowing

from tutelage.engine.engine import Engine, EngineConfig
from tutelage.sampling.sampler import for_inference
from tutelage.text.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Köln", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
Serve = Callable[[Tokenizer], TestClient]


@pytest.fixture
def serve(serving, make_gpt) -> Iterator[Serve]:
    """serve(tokenizer): a client of a server with a tiny model."""
    engines = []

    def start(words: Tokenizer) -> TestClient:
        model = make_gpt(vocab_size=words.vocab_size, context=1000)
        engines.append(Engine(for_inference(model), EngineConfig(slots=4, context=0, memory=64)))
        engines[-1].start()
        s = serving(words=words, context=1000)
        s.app.state.registry.served["stub"].engine = engines[-1]
        return s.client

    yield start
    for engine in engines:
        engine.close()


def calls_of(client: TestClient, **body: Any) -> list[Any]:
    """The calls of each choice, from a whole response and, which must be the same, from a stream."""
    asked = {"model": "stub", "messages": [{"role": "user", "content": "x"}], "n": 3, "max_tokens": 60} | body
    whole = client.post(CHAT, json=asked)
    assert whole.status_code == 200, whole.text
    choices = whole.json()["choices"]
    streamed: list[list[list[str]]] = [[] for _ in choices]
    for line in client.post(CHAT, json=asked | {"stream": True}).text.split("\n\n")[:-2]:
        choice = json.loads(line[6:])["choices"][0]
        for call in choice["delta"].get("tool_calls", []):
            if "id" in call:
                streamed[choice["index"]].append([call["function"]["name"], ""])
            streamed[choice["index"]][call["index"]][1] += call["function"]["arguments"]
    made = [
        [[c["function"]["name"], c["function"]["arguments"]] for c in choice["message"].get("tool_calls", [])]
        for choice in choices
    ]
    assert streamed == made
    assert all(choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None for choice in choices)
    return [[(name, json.loads(arguments)) for name, arguments in calls] for calls in made]


def is_valid(name: str, arguments: dict[str, Any]) -> bool:
    if name == "now":
        return arguments == {}
    return set(arguments) == {"city", "days"} and arguments["city"] in ("Köln", "Rome") and 1 <= arguments["days"] <= 9


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*list(KNOWING)[1:], "our own")]


@pytest.mark.parametrize("name", ["Qwen", *SLOW])
def test_a_required_call_is_valid(serve: Serve, tokenizer: Tokenizer, name: str) -> None:
    client = serve(tokenizer if name == "our own" else knowing(tokenizer, name))
    answers = calls_of(client, tools=TOOLS, tool_choice="required", seed=1)
    assert all(answers) and all(is_valid(*call) for calls in answers for call in calls)
    chosen = {"type": "function", "function": {"name": "weather"}}
    answers = calls_of(client, tools=TOOLS, tool_choice=chosen, seed=2, max_tokens=150)
    assert all([name for name, _ in calls] == ["weather"] and is_valid(*calls[0]) for calls in answers)


@pytest.mark.parametrize("special", [True, False])
def test_a_call_after_reasoning_is_valid(serve: Serve, tokenizer: Tokenizer, special: bool) -> None:
    """The template opens the reasoning, and the model must close it first. In Qwen3 the marks are not special."""
    words = knowing(tokenizer, "Qwen", *(["<think>", "</think>"] if special else []))
    words._backend.add_tokens([AddedToken(mark, special=special) for mark in ("<think>", "</think>")])
    words = Tokenizer(words._backend, words.settings | {"chat_template": words.chat_template + "{{- '<think>\\n' }}"})
    client = serve(words)
    bias = {str(words.control_tokens["</think>"]): 5}
    answers = calls_of(client, tools=TOOLS, tool_choice="required", seed=1, logit_bias=bias, max_tokens=200)
    assert all(answers) and all(is_valid(*call) for calls in answers for call in calls)
    body = {"model": "stub", "messages": [{"role": "user", "content": "x"}], "max_tokens": 200, "logit_bias": bias}
    answer = client.post(CHAT, json=body | {"response_format": {"type": "json_object"}}).json()["choices"][0]
    assert isinstance(json.loads(answer["message"]["content"]), dict)
    body |= {"tools": TOOLS, "tool_choice": "required", "max_tokens": 60, "logit_bias": {}}
    hurried = client.post(CHAT, json=body).json()["choices"][0]  # the reasoning is ended in time for a call
    assert [call["function"]["name"] for call in hurried["message"]["tool_calls"]]


@pytest.mark.slow
def test_strict_tools_are_held_to_their_schema_where_a_mark_begins_a_call(serve: Serve, tokenizer: Tokenizer) -> None:
    words = knowing(tokenizer, "Qwen")
    tools = [{"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}]
    bias = {str(words.control_tokens["<tool_call>"]): 8}
    answers = calls_of(serve(words), tools=tools, logit_bias=bias, seed=3, max_tokens=200, parallel_tool_calls=False)
    assert all(len(calls) == 1 and is_valid(*calls[0]) for calls in answers)
