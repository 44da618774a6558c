"""Function calls and reasoning in chat completions, as the official client reads them in its strict mode."""

import json
from typing import Any

import openai
import pytest
from openai import OpenAI, pydantic_function_tool
from pydantic import BaseModel

from tutelage.text.tokenizer import Tokenizer

ASK: list[Any] = [{"role": "user", "content": "where is the cat?"}]


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    days: int


TOOLS: list[Any] = [
    pydantic_function_tool(Weather),
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
CALL = '<tool_call>\n{"name": "Weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
PARIS = {"city": "Köln", "days": 2}


def whole(client: OpenAI, **settings: Any) -> Any:
    return client.chat.completions.create(model="stub", messages=settings.pop("messages", ASK), **settings)


def streamed(client: OpenAI, **settings: Any) -> Any:
    """The final completion as the client's own helper gathers it."""
    with client.chat.completions.stream(model="stub", messages=settings.pop("messages", ASK), **settings) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


def said(completion: Any) -> tuple[Any, str, list[tuple[str, Any]]]:
    """Content, finish_reason and calls of the first choice."""
    choice = completion.choices[0]
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []]
    return choice.message.content, choice.finish_reason, calls


@pytest.mark.parametrize("ask", [whole, streamed])
@pytest.mark.parametrize(
    ("text", "content", "reason", "calls"),
    [
        (CALL, None, "tool_calls", [("Weather", PARIS)]),
        (f"I look.\n{CALL}\n{NOW}", "I look.", "tool_calls", [("Weather", PARIS), ("now", {})]),
        ("It is here.", "It is here.", "stop", []),
        (CALL[:-20], CALL[:-20], "stop", []),  # no valid call
        (CALL.replace("Weather", "delete"), CALL.replace("Weather", "delete"), "stop", []),
    ],
)
def test_calls_in_an_answer(serving, ask, text: str, content: str | None, reason: str, calls: list[Any]) -> None:
    client = serving(text, context=2000).openai
    completion = ask(client, tools=TOOLS)
    assert said(completion) == (content, reason, calls)
    ids = [call.id for call in completion.choices[0].message.tool_calls or []]
    assert len(set(ids)) == len(calls) and all(one.startswith("call_") for one in ids)


def test_a_call_streams_its_id_and_name_once_and_then_its_arguments(serving) -> None:
    client = serving(f"I look. {CALL}{NOW}", context=2000).openai
    chunks = list(client.chat.completions.create(model="stub", messages=ASK, tools=TOOLS, stream=True, n=2))
    for index in range(2):
        deltas = [c.choices[0].delta for c in chunks if c.choices[0].index == index]
        assert (deltas[0].role, deltas[0].content) == ("assistant", None)
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        heads = [call for call in calls if call.id]
        assert [(h.index, h.type, h.function.name, h.function.arguments) for h in heads] == [
            (0, "function", "Weather", ""),
            (1, "function", "now", ""),
        ]
        rest = [call for call in calls if not call.id]
        assert all(call.type is None and call.function.name is None for call in rest)
        arguments = ["".join(call.function.arguments for call in rest if call.index == i) for i in (0, 1)]
        assert [json.loads(text) for text in arguments] == [PARIS, {}]
        assert "".join(delta.content or "" for delta in deltas) == "I look."
    assert {c.choices[0].finish_reason for c in chunks} == {None, "tool_calls"}


def test_the_clients_helpers_parse_a_strict_call(serving) -> None:
    client = serving(CALL, context=2000).openai
    parsed = client.chat.completions.parse(model="stub", messages=ASK, tools=TOOLS[:1])
    assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(**PARIS)
    final = streamed(client, tools=TOOLS[:1])
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(**PARIS)


def test_tool_choice_none_is_plain_chat(serving, tokenizer: Tokenizer) -> None:
    s = serving(CALL, context=2000)
    assert said(whole(s.openai, tools=TOOLS, tool_choice="none")) == (CALL, "stop", [])
    assert said(whole(s.openai)) == (CALL, "stop", [])
    assert s.engine.requests[0].prompt == s.engine.requests[1].prompt
    assert all(request.constraint is None for request in s.engine.requests)


def test_without_parallel_calls_the_answer_ends_with_the_first(serving) -> None:
    for ask in (whole, streamed):
        s = serving(f"{CALL}\n{NOW}" + " more" * 200, context=4000, pause=0.001)
        completion = ask(s.openai, tools=TOOLS, parallel_tool_calls=False)
        assert said(completion) == (None, "tool_calls", [("Weather", PARIS)])
        assert s.engine.handles[0].cancelled


@pytest.mark.parametrize(
    ("choice", "strict", "constrained"),
    [
        ("auto", False, False),
        ("auto", True, True),
        ("required", False, True),
        ({"type": "function", "function": {"name": "now"}}, False, True),
        ("none", True, False),
    ],
)
def test_a_call_that_must_come_or_fit_a_schema_is_held_to_it(
    serving, choice: Any, strict: bool, constrained: bool
) -> None:
    s = serving(NOW, context=2000)
    tools = (
        TOOLS if strict else [{"type": "function", "function": tool["function"] | {"strict": False}} for tool in TOOLS]
    )
    whole(s.openai, tools=tools, tool_choice=choice)
    assert (s.engine.requests[0].constraint is not None) == constrained


def test_the_earlier_turns_reach_the_template(serving, tokenizer: Tokenizer) -> None:
    s = serving("fine", context=4000)
    first = whole(serving(f"I look. {CALL}", context=2000).openai, tools=TOOLS).choices[0].message
    turns = [{"role": "developer", "content": "Be brief."}, *ASK, first.model_dump(exclude_none=True)]
    turns.append({"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": [{"type": "text", "text": "dry"}]})
    whole(s.openai, messages=turns, tools=TOOLS)
    prompt = tokenizer.decode(s.engine.requests[0].prompt, skip_special=False)
    for part in ("<|system|>Be brief.\n\nYou can call functions.", f"I look.\n{CALL}<|end|>", '"content": "dry"'):
        assert part in prompt
    whole(s.openai, messages=[*ASK, {"role": "assistant", "content": None, "tool_calls": turns[2]["tool_calls"]}])
    assert f"<|assistant|>{CALL}<|end|>" in tokenizer.decode(s.engine.requests[1].prompt, skip_special=False)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_given_back_to_a_template_that_reads_it(serving, tokenizer: Tokenizer, name: str) -> None:
    template = tokenizer.chat_template.replace(
        "message['content']", "(message.reasoning_content or '') + message['content']"
    )
    words = Tokenizer(tokenizer._backend, tokenizer.settings | {"chat_template": template})
    s = serving("fine", words=words, context=500)
    whole(s.openai, messages=[*ASK, {"role": "assistant", "content": "Here.", name: "hm: "}, *ASK])
    assert "<|assistant|>hm: Here.<|end|>" in words.decode(s.engine.requests[0].prompt, skip_special=False)


@pytest.mark.parametrize("ask", [whole, streamed])
def test_reasoning_is_not_content(serving, tokenizer: Tokenizer, ask) -> None:
    client = serving("<think>\nhow odd\n</think>\n\nHere.", context=2000).openai
    completion = ask(client, **({"stream_options": {"include_usage": True}} if ask is streamed else {}))
    message = completion.choices[0].message
    assert (message.reasoning_content, message.content) == ("how odd", "Here.")
    assert completion.usage.completion_tokens_details.reasoning_tokens == len(tokenizer.encode("\nhow odd\n"))
    cut = whole(client, max_tokens=len(tokenizer.encode("<think>\nhow"))).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("", "length")
    assert cut.message.reasoning_content == "how"
    called = ask(serving(f"<think>{NOW}</think>{CALL}", context=2000).openai, tools=TOOLS)
    assert said(called) == (None, "tool_calls", [("Weather", PARIS)])
    assert called.choices[0].message.reasoning_content == NOW


def test_the_marks_may_be_special_tokens_of_the_vocabulary(serving, tokenizer: Tokenizer) -> None:
    marks = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    words = tokenizer.with_specials(marks)
    ids: list[int] = []
    for part in ("<think>", "hm", "</think>", "So: ", "<tool_call>", *CALL.splitlines()[1:2], "</tool_call>"):
        ids += [words.special[part]] if part in marks else words.encode(part)
    client = serving(ids, words=words, context=2000).openai
    completion = whole(client, tools=TOOLS)
    assert said(completion) == ("So:", "tool_calls", [("Weather", PARIS)])
    assert completion.choices[0].message.reasoning_content == "hm"


def test_calls_are_stored_as_they_were(serving) -> None:
    s = serving(f"<think>hm</think>{CALL}", context=4000)
    client = s.openai
    nullable = {"type": "object", "properties": {"a": {"type": ["string", "null"], "default": None}}}
    tools = [*TOOLS, {"type": "function", "function": {"name": "other", "parameters": nullable}}]
    first = whole(client, tools=tools, store=True, tool_choice="auto")
    kept = client.chat.completions.retrieve(first.id)
    assert kept.choices[0].message == first.choices[0].message
    assert kept.tools == tools and kept.tool_choice == "auto"
    turns = [*ASK, first.choices[0].message.model_dump(exclude_none=True)]
    turns.append({"role": "tool", "tool_call_id": first.choices[0].message.tool_calls[0].id, "content": "dry"})
    second = whole(client, messages=turns, tools=tools, store=True)
    _, call, result = s.client.get(f"/v1/chat/completions/{second.id}/messages").json()["data"]
    assert call["tool_calls"] == turns[1]["tool_calls"] and call["reasoning_content"] == "hm"
    assert (result["role"], result["tool_call_id"], result["content"]) == ("tool", turns[2]["tool_call_id"], "dry")


def test_logprobs_list_every_token_of_an_answer_with_a_call(serving) -> None:
    client = serving(f"I look. {CALL}", context=2000).openai
    tokens = [t.token for t in whole(client, tools=TOOLS, logprobs=True).choices[0].logprobs.content]
    assert "".join(tokens).startswith("I look. <tool_call>")
    chunks = client.chat.completions.create(model="stub", messages=ASK, tools=TOOLS, logprobs=True, stream=True)
    logprobs = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    assert [t.token for some in logprobs if some for t in some.content] == tokens


def test_a_strict_schema_that_cannot_be_held_to_is_refused_by_name(serving) -> None:
    client = serving(CALL, context=2000).openai
    schema = {"type": "object", "properties": {"a": {"type": "object", "propertyNames": {"pattern": "^a"}}}}
    tool = {
        "type": "function",
        "function": {"name": "f", "strict": True, "parameters": schema | {"dependentSchemas": {"a": {}}}},
    }
    with pytest.raises(openai.BadRequestError) as refused:
        whole(client, tools=[tool])
    assert refused.value.param == "tools" and "'f'" in refused.value.message
    tool["function"]["strict"] = False
    assert whole(client, tools=[tool], tool_choice="required").choices


def test_schemas_that_are_too_large_together_are_refused_or_let_go(serving) -> None:
    client = serving(CALL, context=300_000).openai
    large = {"type": "object", "properties": {"a": {"enum": [f"{i:040}" for i in range(200)]}}}
    functions = [{"name": f"f{i}", "parameters": large} for i in range(17)]
    tools: list[Any] = [{"type": "function", "function": function} for function in functions]
    assert whole(client, tools=tools, tool_choice="required").choices
    strict: list[Any] = [{"type": "function", "function": function | {"strict": True}} for function in functions]
    with pytest.raises(openai.BadRequestError, match="so many functions"):
        whole(client, tools=strict)
