"""OpenAI's Python client, strict: structured output, tools and the Responses API. Runs with versions 1 to 3.

`tests/server/scenarios.py` has the scenarios of plain chat and completions.
"""

import json
from typing import Any, Literal

import openai
from harness import KEY, MODEL, QUESTION, TOKENS, URL, run, scenario
from openai import OpenAI
from pydantic import BaseModel

MESSAGES: Any = [{"role": "user", "content": QUESTION}]


class Cat(BaseModel):
    colour: Literal["red", "black", "white"]
    age: Literal[1, 2, 3]
    asleep: bool


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "black", "white"]},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2},
        "asleep": {"type": "boolean"},
    },
    "required": ["colour", "ages", "asleep"],
    "additionalProperties": False,
}


def tool(name: str, **properties: Any) -> Any:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    parameters["additionalProperties"] = False
    function = {"name": name, "description": f"Calls {name}", "parameters": parameters, "strict": True}
    return {"type": "function", "function": function}


TOOLS: Any = [
    tool("find_cat", place={"type": "string", "enum": ["mat", "tree"]}),
    tool("feed_cat", grams={"type": "integer", "minimum": 0, "maximum": 9}, fish={"type": "boolean"}),
]


def client(strict: bool = True) -> OpenAI:
    settings: dict[str, Any] = {"base_url": URL, "api_key": KEY, "max_retries": 0, "timeout": 120}
    return OpenAI(**settings, _strict_response_validation=strict)


def chat(**settings: Any) -> Any:
    return client().chat.completions.create(**({"model": MODEL, "messages": MESSAGES, "max_tokens": 200} | settings))


def check_cat(text: str) -> None:
    cat = json.loads(text)
    assert cat["colour"] in ("red", "black", "white") and isinstance(cat["asleep"], bool)
    assert len(cat["ages"]) <= 2 and all(0 <= age <= 9 for age in cat["ages"])


def check_call(call: Any) -> None:
    arguments = json.loads(call.arguments)
    if call.name == "find_cat":
        assert arguments["place"] in ("mat", "tree")
    else:
        assert call.name == "feed_cat" and 0 <= arguments["grams"] <= 9 and isinstance(arguments["fish"], bool)


# --- structured output


FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "cat", "schema": SCHEMA, "strict": True}}


@scenario
def json_object() -> None:
    choice = chat(response_format={"type": "json_object"}, max_tokens=120).choices[0]
    assert isinstance(json.loads(choice.message.content), dict), choice


@scenario
def json_schema() -> None:
    for seed in range(4):
        choice = chat(response_format=FORMAT, seed=seed).choices[0]
        assert choice.finish_reason == "stop"
        check_cat(choice.message.content)


@scenario
def json_schema_streamed() -> None:
    chunks = list(chat(response_format=FORMAT, stream=True, seed=1))
    check_cat("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert chunks[-1].choices[0].finish_reason == "stop"


@scenario
def several_choices_each_fit() -> None:
    choices = chat(response_format=FORMAT, n=3, seed=1).choices
    assert len(choices) == 3
    for choice in choices:
        check_cat(choice.message.content)


@scenario
def json_schema_with_logprobs() -> None:
    choice = chat(response_format=FORMAT, logprobs=True, top_logprobs=2).choices[0]
    assert bytes(b for token in choice.logprobs.content for b in token.bytes).decode() == choice.message.content


@scenario
def parse_helper() -> None:
    completions = getattr(client().chat.completions, "parse", None) or client().beta.chat.completions.parse
    parsed = completions(model=MODEL, messages=MESSAGES, response_format=Cat, max_tokens=200).choices[0].message.parsed
    assert isinstance(parsed, Cat)


@scenario
def parse_helper_streamed() -> None:
    completions = client().chat.completions
    helper = getattr(completions, "stream", None) or client().beta.chat.completions.stream
    with helper(model=MODEL, messages=MESSAGES, response_format=Cat, max_tokens=200) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Cat)


@scenario
def what_a_schema_cannot_hold_to_is_refused_by_name() -> None:
    broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "dependentSchemas": 3}}}
    try:
        chat(response_format=broken)
    except openai.BadRequestError as error:
        assert error.param and error.param.startswith("response_format"), error.param
    else:
        raise AssertionError("not refused")


# --- tools


@scenario
def tools_with_choice_none() -> None:
    message = chat(tools=TOOLS, tool_choice="none", max_tokens=TOKENS).choices[0].message
    assert isinstance(message.content, str) and not message.tool_calls


@scenario
def tools_with_choice_auto() -> None:
    message = chat(tools=TOOLS, max_tokens=TOKENS).choices[0].message
    for call in message.tool_calls or []:
        check_call(call.function)
    assert message.tool_calls or isinstance(message.content, str)


@scenario
def tools_with_choice_required() -> None:
    for seed in range(4):
        choice = chat(tools=TOOLS, tool_choice="required", seed=seed).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
        for call in choice.message.tool_calls:
            check_call(call.function)


@scenario
def tools_with_one_named() -> None:
    wanted: Any = {"type": "function", "function": {"name": "feed_cat"}}
    calls = chat(tools=TOOLS, tool_choice=wanted, parallel_tool_calls=False).choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["feed_cat"]
    check_call(calls[0].function)


@scenario
def tool_calls_streamed() -> None:
    """Index and id first, the name once, the arguments in pieces."""
    calls: dict[int, dict[str, str]] = {}
    reasons = []
    for chunk in chat(tools=TOOLS, tool_choice="required", stream=True, seed=2):
        reasons.append(chunk.choices[0].finish_reason)
        for part in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
            assert not (part.id and call["id"]) and not (part.function.name and call["name"])
            call["id"] += part.id or ""
            call["name"] += part.function.name or ""
            call["arguments"] += part.function.arguments or ""
    assert calls and reasons[-1] == "tool_calls" and all(call["id"] for call in calls.values())
    for call in calls.values():
        check_call(type("Call", (), call))


@scenario
def tool_stream_helper() -> None:
    completions = client().chat.completions
    helper = getattr(completions, "stream", None) or client().beta.chat.completions.stream
    with helper(model=MODEL, messages=MESSAGES, tools=TOOLS, tool_choice="required", max_tokens=200) as stream:
        kinds = {event.type for event in stream}
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert calls and "tool_calls.function.arguments.done" in kinds
    check_call(calls[0].function)


@scenario
def a_tools_result_is_answered() -> None:
    first = chat(tools=TOOLS, tool_choice="required").choices[0].message
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in first.tool_calls]
    turns = [*MESSAGES, first.model_dump(exclude_none=True), *results]
    choice = chat(messages=turns, tools=TOOLS, max_tokens=TOKENS).choices[0]
    assert choice.finish_reason in ("stop", "length", "tool_calls")


@scenario
def developer_and_system_turns() -> None:
    for role in ("developer", "system"):
        assert chat(messages=[{"role": role, "content": "be brief"}, *MESSAGES], max_tokens=TOKENS).choices


# --- the Responses API


def respond(**settings: Any) -> Any:
    return client().responses.create(**({"model": MODEL, "input": QUESTION, "max_output_tokens": 200} | settings))


RESPONSE_TOOLS: Any = [{"type": "function", **each["function"]} for each in TOOLS]
TEXT_FORMAT: Any = {"format": {"type": "json_schema", "name": "cat", "schema": SCHEMA, "strict": True}}


@scenario
def response() -> None:
    answer = respond(instructions="be brief", max_output_tokens=TOKENS)
    assert answer.status in ("completed", "incomplete") and answer.output_text is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@scenario
def response_to_turns() -> None:
    turns: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        {"role": "assistant", "content": "On the mat."},
        {"role": "user", "content": "And now?"},
    ]
    assert respond(input=turns, max_output_tokens=TOKENS).output


@scenario
def response_streamed() -> None:
    events = list(respond(stream=True, max_output_tokens=TOKENS))
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text


@scenario
def response_with_a_schema() -> None:
    answer = respond(text=TEXT_FORMAT)
    assert answer.status == "completed"
    check_cat(answer.output_text)


@scenario
def response_parse_helper() -> None:
    parsed = client().responses.parse(model=MODEL, input=QUESTION, text_format=Cat, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Cat)


@scenario
def response_with_tools() -> None:
    answer = respond(tools=RESPONSE_TOOLS, tool_choice="required")
    calls = [item for item in answer.output if item.type == "function_call"]
    assert calls
    for call in calls:
        check_call(call)
    items: Any = [{"role": "user", "content": QUESTION}, *(item.model_dump() for item in answer.output)]
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": "done"} for call in calls]
    assert respond(input=items, tools=RESPONSE_TOOLS, max_output_tokens=TOKENS).output is not None


@scenario
def response_tools_streamed() -> None:
    events = list(respond(tools=RESPONSE_TOOLS, tool_choice="required", stream=True))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert done and "".join(pieces) == "".join(event.arguments for event in done)


@scenario
def response_stream_helper() -> None:
    with client().responses.stream(model=MODEL, input=QUESTION, text_format=Cat, max_output_tokens=200) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Cat)


@scenario
def a_stored_response_is_continued() -> None:
    first = respond(store=True, max_output_tokens=TOKENS)
    second = respond(input="And now?", previous_response_id=first.id, store=True, max_output_tokens=TOKENS)
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    forgotten = respond(store=False, max_output_tokens=TOKENS)
    try:
        respond(previous_response_id=forgotten.id, max_output_tokens=TOKENS)
    except openai.APIStatusError as error:
        assert error.status_code in (400, 404) and error.param == "previous_response_id", error
    else:
        raise AssertionError("a response that was not stored was continued")


# --- what is not there


@scenario
def embeddings_are_not_found() -> None:
    try:
        client().embeddings.create(model=MODEL, input="x")
    except openai.NotFoundError as error:
        assert error.code == "unknown_url"
    else:
        raise AssertionError("embeddings were found")


if __name__ == "__main__":
    run("openai")
