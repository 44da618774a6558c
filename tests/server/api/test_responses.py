"""The Responses API as the official client reads it in its strict mode, and the order of its events."""

import json
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel
from sqlalchemy import select

from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.server.text_work import TextWork
from tutelage.store.tables import StoredResponse, User
from tutelage.text.tokenizer import Tokenizer

URL = "/v1/responses"
NOW: Any = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}, "strict": False}
CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "CET"}}\n</tool_call>'
ALL = f"<think>\nhm\n</think>\n\nI look. {CALL}"


def ask(served: SimpleNamespace, **body: Any) -> Any:
    return served.openai.responses.create(**({"model": "stub", "input": "where is the cat?"} | body))


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose framing and numbers are checked."""
    events = []
    for number, block in enumerate(text.strip().split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == number
        events.append(event)
    return events


def test_a_text_in_one_piece(serving, tokenizer: Tokenizer) -> None:
    s = serving("the cat 你好")
    response = ask(s, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5, max_output_tokens=40)
    assert response.output_text == "the cat 你好" and response.status == "completed"
    assert (response.object, response.id[:5], response.instructions) == ("response", "resp_", "Be brief.")
    assert (response.metadata, response.temperature, response.max_output_tokens) == ({"a": "b"}, 0.5, 40)
    assert (response.tools, response.tool_choice, response.error, response.incomplete_details) == (
        [],
        "auto",
        None,
        None,
    )
    prompt, usage = s.engine.requests[0].prompt, response.usage
    assert (
        tokenizer.decode(prompt, skip_special=False)
        == "<|system|>Be brief.<|end|><|user|>where is the cat?<|end|><|assistant|>"
    )
    assert (usage.input_tokens, usage.output_tokens) == (len(prompt), len(tokenizer.encode("the cat 你好")))
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert response.model_dump()["store"] is False


def test_reasoning_text_and_calls_are_items(serving) -> None:
    response = ask(serving(ALL, context=2000), tools=[NOW])
    reasoning, message, call = response.output
    assert (reasoning.type, reasoning.content[0].text, reasoning.summary) == ("reasoning", "hm", [])
    assert (message.role, message.content[0].text, message.status) == ("assistant", "I look.", "completed")
    assert (call.name, json.loads(call.arguments), call.call_id[:5]) == ("now", {"zone": "CET"}, "call_")
    assert response.usage.output_tokens_details.reasoning_tokens > 0


ITEM, PART = (
    ("response.output_item.added", "response.output_item.done"),
    ("response.content_part.added", "response.content_part.done"),
)
ORDER = [  # OpenAI's documented order
    "response.created", "response.in_progress",
    ITEM[0], PART[0], "response.reasoning_text.delta", "response.reasoning_text.done", PART[1], ITEM[1],
    ITEM[0], PART[0], "response.output_text.delta", "response.output_text.done", PART[1], ITEM[1],
    ITEM[0], "response.function_call_arguments.delta", "response.function_call_arguments.done", ITEM[1],
    "response.completed",
]  # fmt: skip


def test_events_come_in_order_and_lead_to_the_same_response(serving) -> None:
    s = serving(ALL, context=2000)
    events = events_of(s.client.post(URL, json={"model": "stub", "input": "x", "tools": [NOW], "stream": True}).text)
    kinds = [event["type"] for event in events]
    assert [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]] == ORDER
    done = [event["item"] for event in events if event["type"] == ITEM[1]]
    assert events[-1]["response"]["output"] == done
    assert [event["output_index"] for event in events if event["type"] == ITEM[0]] == [0, 1, 2]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == done[1]["content"][0]["text"] == "I look."
    assert [event["response"]["status"] for event in events if "response" in event] == ["in_progress"] * 2 + [
        "completed"
    ]
    whole = s.client.post(URL, json={"model": "stub", "input": "x", "tools": [NOW]}).json()

    def without_ids(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in output]

    assert without_ids(whole["output"]) == without_ids(done) and whole["usage"] == events[-1]["response"]["usage"]


def test_the_clients_stream_helper_gathers_it(serving) -> None:
    client = serving(ALL, context=2000).openai
    with client.responses.stream(model="stub", input="x", tools=[NOW]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert final.output_text == "I look." and final.output[2].name == "now"


class Cat(BaseModel):
    name: str


def test_structured_output_is_parsed_by_the_client(serving) -> None:
    s = serving('{"name": "Mia"}', context=2000)
    assert s.openai.responses.parse(model="stub", input="x", text_format=Cat).output_parsed == Cat(name="Mia")
    assert s.engine.requests[0].constraint is not None
    tool = pydantic_function_tool(Cat)["function"]
    flat: Any = {"type": "function", "name": "Cat", "parameters": tool["parameters"], "strict": True}
    called = serving('<tool_call>\n{"name": "Cat", "arguments": {"name": "Mia"}}\n</tool_call>', context=2000)
    response = ask(called, tools=[flat], tool_choice={"type": "function", "name": "Cat"})
    assert json.loads(response.output[0].arguments) == {"name": "Mia"}
    assert response.tool_choice.name == "Cat" and response.tools[0].parameters == tool["parameters"]
    assert called.engine.requests[0].constraint is not None


def test_items_of_an_answer_and_results_are_given_back(serving, tokenizer: Tokenizer) -> None:
    first = ask(serving(ALL, context=2000), tools=[NOW])
    s = serving("noon", context=4000)
    items = [{"role": "user", "content": [{"type": "input_text", "text": "time?"}]}]
    items += [item.model_dump(exclude_none=True) for item in first.output]
    items += [{"type": "function_call_output", "call_id": first.output[2].call_id, "output": "12:00"}]
    ask(s, input=items, tools=[NOW])
    prompt = tokenizer.decode(s.engine.requests[0].prompt, skip_special=False)
    assert f"<|user|>time?<|end|><|assistant|>I look.\n{CALL}<|end|><|user|><tool_response>" in prompt
    assert '{"name": "now", "content": "12:00"}' in prompt


def test_a_stored_response_is_read_continued_and_deleted(serving, tokenizer: Tokenizer) -> None:
    s = serving("the cat", context=1000)
    client = s.openai
    first = ask(s, store=True, instructions="Be brief.")
    assert client.responses.retrieve(first.id).output_text == "the cat"
    for stream in (False, True):
        second = ask(s, input="and?", previous_response_id=first.id, store=True, stream=stream)
        second = list(second)[-1].response if stream else second
        assert second.previous_response_id == first.id
    third = ask(s, input="why?", previous_response_id=second.id)
    turns = [
        "<|user|>where is the cat?",
        "<|assistant|>the cat",
        "<|user|>and?",
        "<|assistant|>the cat",
        "<|user|>why?",
    ]
    prompt = tokenizer.decode(s.engine.requests[-1].prompt, skip_special=False)
    assert prompt == "".join(f"{turn}<|end|>" for turn in turns) + "<|assistant|>"  # without the instructions
    items = client.responses.input_items.list(second.id).data
    assert [(item.role, item.content[0].text) for item in items] == [("user", "and?")]
    client.responses.delete(first.id)
    for response in (first, third):  # deleted, and never stored
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as refused:  # its beginning is gone
        ask(s, input="why?", previous_response_id=second.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


def test_others_cannot_reach_a_stored_response(serving) -> None:
    s = serving("the cat", context=500)
    stored = ask(s, store=True)
    with s.database.write() as session:
        assert session.scalars(select(StoredResponse)).one().request["input"][0]["content"] == "where is the cat?"
        session.add(User(id="usr_other", name="Bea"))
    _, secret = s.keys.make("usr_other", "x", scopes=("inference",))
    headers = {"authorization": f"Bearer {secret}"}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items")):
        assert s.client.request(method, f"{URL}/{stored.id}{path}", headers=headers).status_code == 404
    body = {"model": "stub", "input": "x", "previous_response_id": stored.id}
    assert s.client.post(URL, json=body, headers=headers).status_code == 400
    assert s.client.get(f"{URL}/{stored.id}").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_off_is_incomplete(serving, stream: bool) -> None:
    response = ask(serving("the cat sat on the mat"), max_output_tokens=2, stream=stream)
    if stream:
        last = list(response)[-1]
        assert last.type == "response.incomplete"
        response = last.response
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"


def test_what_moderation_stops_is_refused(serving, tmp_path) -> None:
    s = serving("the cat")
    (tmp_path / "terms.txt").write_text("[violence]\nbanana\n", encoding="utf-8")
    s.app.state.text_work = TextWork(Moderator(ModerationConfig(terms=tmp_path / "terms.txt", blocked=("violence",))))
    for stream in (False, True):
        response = ask(s, input="a banana", stream=stream)
        response = list(response)[-1].response if stream else response
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "content_filter")
        assert response.output[0].content[0].type == "refusal"
    assert s.engine.requests == []


def test_a_failure_in_the_middle_of_a_stream_is_its_last_event(serving) -> None:
    events = events_of(
        serving(fail_after=2).client.post(URL, json={"model": "stub", "input": "x", "stream": True}).text
    )
    assert events[-1]["type"] == "response.failed" and events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert serving(fail_after=2).client.post(URL, json={"model": "stub", "input": "x"}).status_code == 500


def test_logprobs_come_on_request(serving, tokenizer: Tokenizer) -> None:
    s = serving("<think>hm</think>the cat", context=500)
    content = ask(s, include=["message.output_text.logprobs"], top_logprobs=2).output[1].content[0]
    assert "".join(token.token for token in content.logprobs).endswith("the cat")
    assert len(content.logprobs[-1].top_logprobs) == 2
    assert ask(s).output[1].content[0].logprobs == []


MISTAKES: list[tuple[dict[str, Any], str, str | None]] = [
    ({"background": True}, "unsupported_parameter", "background"),
    ({"conversation": "conv_1"}, "unsupported_parameter", "conversation"),
    ({"prompt": {"id": "p"}}, "unsupported_parameter", "prompt"),
    ({"truncation": "auto"}, "unsupported_value", "truncation"),
    ({"tools": [{"type": "web_search"}]}, "unsupported_value", "tools.0"),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools.0.name"),
    ({"tools": [NOW], "tool_choice": {"type": "file_search"}}, "unsupported_value", "tool_choice"),
    ({"tools": [NOW], "tool_choice": {"type": "function", "name": "other"}}, "invalid_value", "tool_choice"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_value", "input.0.type"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "missing_required_parameter", "input.0.call_id"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "unsupported_value",
        "input.0.content.0.type",
    ),
    ({"input": [{"role": "king", "content": "x"}]}, "invalid_value", "input.0.role"),
    ({"input": []}, "invalid_value", "input"),
    ({"input": "cat " * 99}, "context_length_exceeded", "input"),
    ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "missing_required_parameter", "text.format.schema"),
    ({"previous_response_id": "resp_none"}, "previous_response_not_found", "previous_response_id"),
    ({"n": 2}, "invalid_value", "n"),
]


@pytest.mark.parametrize(("body", "code", "param"), MISTAKES)
def test_every_mistake_names_its_parameter(serving, body: dict[str, Any], code: str, param: str | None) -> None:
    response = serving().client.post(URL, json={"model": "stub", "input": "x"} | body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error["message"]


def test_the_responses_api_has_the_limits_of_chat(serving) -> None:
    few = serving(key={"requests_per_minute": 2})
    statuses = [few.client.post(URL, json={"model": "stub", "input": "x"}).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert serving(full=True).client.post(URL, json={"model": "stub", "input": "x"}).status_code == 503
    assert serving(key={"scopes": ("admin",)}).client.post(URL, json={"model": "stub", "input": "x"}).status_code == 403


@pytest.mark.parametrize(
    "item",
    [
        '{"role": "user", "content": "\\ud800"}',
        '{"role": "user", "content": [{"type": "input_text", "text": "\\ud800"}]}',
        '{"type": "function_call_output", "call_id": "x", "output": "\\ud800"}',
        '{"type": "\\ud800"}',
        '{"role": "user", "content": "x", "other": "\\ud800"}',
    ],
)
def test_a_lone_surrogate_in_an_item_is_a_400(serving, item: str) -> None:
    s = serving()
    body = f'{{"model": "stub", "store": true, "input": [{item}]}}'
    response = s.client.post(URL, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["param"].startswith("input"), response.text


def test_a_conversation_of_too_many_parts_is_refused(serving) -> None:
    parts = [{"type": "input_text", "text": "x"}] * 10_001
    response = serving().client.post(URL, json={"model": "stub", "input": [{"role": "user", "content": parts}]})
    assert response.status_code == 400 and "10000 parts" in response.json()["error"]["message"]
