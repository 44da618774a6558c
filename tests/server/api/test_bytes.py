"""The bytes of the API: envelopes, headers and streams exactly as OpenAI's clients read them."""

import json
import re
import time

import pytest
from starlette.testclient import TestClient

from tutelage.engine.requests import Done

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def chunks(text: str) -> list[dict]:
    """The JSON values of a stream, whose framing is checked byte by byte."""
    events = text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    assert all(event.startswith("data: {") and "\n" not in event and "\r" not in event for event in events[:-2])
    return [json.loads(event[6:]) for event in events[:-2]]


def test_a_chat_in_one_piece(serving, ask, tokenizer) -> None:
    s = serving()
    response = s.client.post(CHAT, json=ask)
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert re.fullmatch(r"chatcmpl-\w{24}", body.pop("id"))
    assert abs(body.pop("created") - time.time()) < 60
    prompt, answer = len(s.engine.requests[0].prompt), len(tokenizer.encode("the cat 你好"))
    assert body == {
        "object": "chat.completion",
        "model": "stub",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "the cat 你好", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
    assert "你好" in response.text  # not as \u escapes


def test_a_chat_as_a_stream(serving, ask) -> None:
    s = serving()
    response = s.client.post(CHAT, json=ask | {"stream": True, "n": 3, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    parts = chunks(response.text)
    heads = {
        json.dumps({k: part[k] for k in ("id", "object", "created", "model", "system_fingerprint")}) for part in parts
    }
    assert len(heads) == 1 and '"chat.completion.chunk"' in heads.pop()
    roles = [part["choices"][0] for part in parts[:3]]
    assert [choice["index"] for choice in roles] == [0, 1, 2]  # in order, or the Python client fails
    assert all(choice["delta"] == {"role": "assistant", "content": ""} for choice in roles)
    assert not any("role" in part["choices"][0]["delta"] for part in parts[3:-1])
    for index in range(3):
        mine = [part["choices"][0] for part in parts[:-1] if part["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "the cat 你好"
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["stop"]
        assert mine[-1]["delta"] == {}
    assert all(part["usage"] is None for part in parts[:-1])
    assert parts[-1]["choices"] == [] and parts[-1]["usage"]["total_tokens"] > 0
    assert "\ufffd" not in response.text


def test_without_the_option_no_chunk_has_usage(serving, ask) -> None:
    parts = chunks(serving().client.post(CHAT, json=ask | {"stream": True}).text)
    assert not any("usage" in part for part in parts)


def test_a_plain_completion_as_a_stream(serving) -> None:
    body = {"model": "stub", "prompt": ["the", "cat"], "n": 2, "stream": True, "echo": True, "max_tokens": 50}
    parts = chunks(serving().client.post(PLAIN, json=body).text)
    assert {part["object"] for part in parts} == {"text_completion"}
    for index in range(4):
        text = "".join(p["choices"][0]["text"] for p in parts if p["choices"][0]["index"] == index)
        assert text == ["the", "cat"][index // 2] + "the cat 你好"


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(serving, ask) -> None:
    response = serving(fail_after=2).client.post(CHAT, json=ask | {"stream": True})
    assert response.status_code == 200
    last = json.loads(response.text.split("\n\n")[-2][6:])
    assert last["error"]["code"] == "engine_error"
    assert "[DONE]" not in response.text
    whole = serving(fail_after=2).client.post(CHAT, json=ask)
    assert (whole.status_code, whole.headers["x-should-retry"]) == (500, "false")


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_503_before_the_first_byte(serving, ask, stream: bool) -> None:
    response = serving(full=True).client.post(CHAT, json=ask | {"stream": stream})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_overloaded"
    assert response.headers["retry-after"] == "1"
    assert "x-should-retry" not in response.headers


ERRORS = [
    ("GET", "/v1/nowhere", None, 404, "unknown_url", None),
    ("PUT", CHAT, {}, 405, "method_not_supported", None),
    ("POST", CHAT, {"messages": []}, 400, "missing_required_parameter", "model"),
    ("POST", CHAT, {"model": "stub", "messages": []}, 400, "invalid_value", "messages"),
    ("POST", CHAT, {"model": "nope", "messages": [{"role": "user", "content": "x"}]}, 404, "model_not_found", "model"),
    ("POST", CHAT, {"model": "judge", "messages": [{"role": "user", "content": "x"}]}, 400, "invalid_value", "model"),
    ("POST", CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "invalid_value", "messages.0.role"),
    ("POST", CHAT, {"temperature": 2.1}, 400, "invalid_value", "temperature"),
    ("POST", CHAT, {"temperature": "1"}, 400, "invalid_value", "temperature"),
    ("POST", CHAT, {"top_p": -0.1}, 400, "invalid_value", "top_p"),
    ("POST", CHAT, {"n": 17}, 400, "invalid_value", "n"),
    ("POST", CHAT, {"n": 0}, 400, "invalid_value", "n"),
    ("POST", CHAT, {"n": True}, 400, "invalid_value", "n"),
    ("POST", CHAT, {"frequency_penalty": 2.5}, 400, "invalid_value", "frequency_penalty"),
    ("POST", CHAT, {"stop": ["a"] * 17}, 400, "invalid_value", "stop"),
    ("POST", CHAT, {"stop": ""}, 400, "invalid_value", "stop"),
    ("POST", CHAT, {"logit_bias": {"9999": 1}}, 400, "invalid_value", "logit_bias"),
    ("POST", CHAT, {"logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias.x.[key]"),
    ("POST", CHAT, {"logit_bias": {"9" * 5000: 1}}, 400, "invalid_value", "logit_bias.999"),
    ("POST", CHAT, {"logit_bias": {str(i): 1 for i in range(1025)}}, 400, "invalid_value", "logit_bias"),
    ("POST", CHAT, {"logit_bias": {"1": 101}}, 400, "invalid_value", "logit_bias.1"),
    ("POST", CHAT, {"top_logprobs": 3}, 400, "invalid_value", None),
    ("POST", CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "invalid_value", "top_logprobs"),
    ("POST", CHAT, {"seed": 2**63}, 400, "invalid_value", "seed"),
    ("POST", CHAT, {"stream_options": {"include_usage": True}}, 400, "invalid_value", None),
    ("POST", CHAT, {"tools": [{"type": "function"}]}, 400, "missing_required_parameter", "tools.0.function"),
    ("POST", CHAT, {"tools": [{"type": "web_search"}]}, 400, "unsupported_value", "tools.0"),
    ("POST", CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, "invalid_value",
     "tools.0.function.name"),
    ("POST", CHAT, {"tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
    ("POST", PLAIN, {"model": "stub", "prompt": "x", "tools": [{}]}, 400, "unsupported_parameter", "tools"),
    ("POST", CHAT, {"functions": [{}]}, 400, "unsupported_parameter", "functions"),
    ("POST", CHAT, {"audio": {}}, 400, "unsupported_parameter", "audio"),
    ("POST", CHAT, {"modalities": ["text", "audio"]}, 400, "unsupported_value", "modalities"),
    ("POST", CHAT, {"response_format": {"type": "json_schema"}}, 400, "invalid_value", "response_format"),
    ("POST", CHAT, {"response_format": {"type": "xml"}}, 400, "invalid_value", "response_format.type"),
    ("POST", CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}}, 400, "invalid_value",
     "response_format.json_schema.name"),
    ("POST", CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 7}}}, 400,
     "invalid_value", "response_format.json_schema.schema"),
    ("POST", CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {
        "type": "array", "uniqueItems": True}}}}, 400, "unsupported_schema", "response_format"),
    ("POST", CHAT, {"max_tokens": 65}, 400, "context_length_exceeded", "messages"),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "cat " * 99}]}, 400, "context_length_exceeded",
     "messages"),
    ("POST", CHAT, {"metadata": {"k" * 65: "v"}}, 400, "invalid_value", f"metadata.{'k' * 65}.[key]"),
    ("POST", CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400,
     "invalid_value", "messages.0.content"),
    ("POST", PLAIN, {"model": "stub", "prompt": "x", "max_tokens": 99}, 400, "context_length_exceeded", "prompt"),
    ("POST", PLAIN, {"model": "stub", "prompt": "x", "suffix": "y"}, 400, "unsupported_parameter", "suffix"),
    ("POST", PLAIN, {"model": "stub", "prompt": "x", "logprobs": 6}, 400, "invalid_value", "logprobs"),
    ("POST", PLAIN, {"model": "stub", "prompt": "x", "n": 2, "best_of": 1}, 400, "invalid_value", None),
    ("POST", PLAIN, {"model": "stub", "prompt": "x", "best_of": 2, "stream": True}, 400, "invalid_value", None),
    ("POST", PLAIN, {"model": "stub", "prompt": [1, 9999]}, 400, "invalid_value", "prompt"),
    ("POST", PLAIN, {"model": "stub", "prompt": []}, 400, "invalid_value", "prompt"),
    ("POST", "/v1/scores", {"model": "stub", "input": [[{"role": "assistant", "content": "x"}]]}, 400, "invalid_value",
     "model"),
    ("POST", "/v1/scores", {"model": "judge", "input": [[{"role": "user", "content": "x"}]]}, 400, "invalid_value",
     "input"),
    ("GET", "/v1/models/nope/x", None, 404, "model_not_found", "model"),
    ("GET", CHAT + "/chatcmpl-none", None, 404, "not_found", "completion_id"),
    ("POST", PLAIN, {"model": "stub", "prompt": ["x"] * 128, "n": 16}, 400, "invalid_value", None),
    ("GET", CHAT + "?limit=101", None, 400, "invalid_value", "limit"),
    ("GET", CHAT + "?after=nobody", None, 400, "invalid_value", "after"),
]  # fmt: skip


@pytest.mark.parametrize("method, path, body, status, code, param", ERRORS)
def test_every_mistake_has_its_envelope(serving, ask, method, path, body, status, code, param) -> None:
    if path == CHAT and body and "model" not in body and body != {"messages": []}:
        body = ask | body
    response = serving().client.request(method, path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    assert (error["param"] or "").startswith(param or "") and bool(error["param"]) == bool(param), response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["message"] and "None" not in error["message"]


@pytest.mark.parametrize(
    "content, told",
    [(b"{", "not valid JSON"), (b'{"model": NaN}', ""), (b"[" * 100_000, ""), (b"\xff\xfe", ""),
     (b"", "The body is empty"), (b"[]", "valid dictionary"), (b'{"prompt": [], "model": "stub"}', "at least 1 item"),
     (b'{"model": "stub", "prompt": "\\ud800"}', "surrogate"), (b'{"prompt": [1' + b"0" * 5000 + b"]}", "")],
)  # fmt: skip
def test_a_body_that_is_none_is_a_400(serving, content: bytes, told: str) -> None:
    response = serving().client.post(PLAIN, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and told in error["message"] and "None" not in error["message"]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
def test_a_body_of_another_type_is_a_415(serving, ask, kind: str) -> None:
    response = serving().client.post(CHAT, content=json.dumps(ask), headers={"content-type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("levels, status", [(62, 200), (63, 400), (900, 400), (50_000, 400)])
def test_json_may_be_nested_64_levels_deep(serving, ask, levels: int, status: int) -> None:
    """The body is the first level and the field the second; the rest are nested lists."""
    head = json.dumps(ask)[:-1]
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        value = opened * (levels + 1) + ("1" if closed == "}" else "") + closed * (levels + 1)
        body = f'{head}, "deep": {value}}}'
        response = serving().client.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert response.status_code == status, response.text
        if status == 400:
            assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_too_large_is_refused_unread(serving, ask) -> None:
    s = serving()
    large = json.dumps(ask | {"user": "x" * 2_100_000}).encode()
    assert s.client.post(CHAT, content=large).status_code == 413

    def dripping():
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    response = s.client.post(CHAT, content=dripping(), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


def test_every_response_carries_its_headers(serving, ask) -> None:
    s = serving()
    answers = [
        s.client.post(CHAT, json=ask),
        s.client.post(CHAT, json=ask | {"stream": True}),
        s.client.post(CHAT, json={}),
        s.client.get("/v1/nowhere"),
    ]
    for response in answers:
        assert re.fullmatch(r"req_\w{24}", response.headers["x-request-id"])
        assert response.headers["openai-processing-ms"].isdigit()
        assert response.headers["openai-version"] == "2020-10-01"
        assert response.headers["x-ratelimit-limit-requests"] == "60000"
        assert re.fullmatch(r"\d+ms|\d+m\d+s|[\d.]+s", response.headers["x-ratelimit-reset-tokens"])
    assert len({response.headers["x-request-id"] for response in answers}) == 4
    stranger = TestClient(s.app).get("/v1/models")
    assert stranger.status_code == 401 and "x-request-id" in stranger.headers


def test_a_wrong_key_is_shown_in_part_only(serving) -> None:
    s = serving()
    response = s.client.get("/v1/models", headers={"authorization": "Bearer sk-abcdefghijklmnopqrstuvwxyz"})
    assert response.status_code == 401
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert "sk-ab**…wxyz" in error["message"] and "cdefg" not in error["message"]


def test_unknown_fields_are_named_and_harmless_ones_are_not(serving, ask) -> None:
    response = serving().client.post(CHAT, json=ask | {"zeal": 1, "alpha": 2, "user": "x", "parallel_tool_calls": True})
    assert response.status_code == 200
    assert response.headers["x-ignored-params"] == "alpha, zeal"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name, told", [("猫", "%E7%8C%AB"), ("a\r\nb: c", "a%0D%0Ab%3A%20c"), ("x" * 9_000, "x" * 40)])
def test_whatever_an_unknown_field_is_called_the_header_can_say_it(serving, ask, name, told, stream: bool) -> None:
    response = serving().client.post(CHAT, json=ask | {name: 1, "stream": stream})
    assert (response.status_code, response.headers["x-ignored-params"]) == (200, told)
    many = serving().client.post(CHAT, json=ask | {f"{i:05}": 1 for i in range(10_000)})
    assert many.headers["x-ignored-params"].startswith("00000, 00001") and len(many.headers["x-ignored-params"]) < 200


def test_a_bug_is_a_500_with_the_id_that_the_log_has(serving, ask, caplog) -> None:
    s = serving()
    s.app.state.registry.get = None
    response = s.client.post(CHAT, json=ask)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-request-id"] in caplog.text


def test_logprobs_of_a_chat_have_exact_bytes(serving, ask) -> None:
    body = serving("the 你").client.post(CHAT, json=ask | {"logprobs": True, "top_logprobs": 2}).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert bytes(b for token in content for b in token["bytes"]).decode() == "the 你"
    assert all(len(token["top_logprobs"]) == 2 for token in content)
    assert content[0]["logprob"] == -0.25


def test_echo_and_logprobs_line_up(serving) -> None:
    prompt = "the cat 世 sat"
    body = {"model": "stub", "prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 20}
    choice = serving(" on 你").client.post(PLAIN, json=body).json()["choices"][0]
    text, logprobs = choice["text"], choice["logprobs"]
    assert text == prompt + " on 你"
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert len({len(column) for column in logprobs.values()}) == 1
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith("bytes:") or text[offset : offset + len(token)] == token
    assert all(len(top) <= 3 for top in logprobs["top_logprobs"][1:])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "answer, stop, listed", [("", None, [""]), (" cat", None, [" cat", ""]), (" cat", " c", [" cat"])]
)
def test_scoring_lists_every_sampled_token(
    serving, tokenizer, answer: str, stop, listed: list[str], stream: bool
) -> None:
    """Programs cut as many entries off the end as tokens were sampled. A real one must not be among them."""
    s = serving(answer, end=tokenizer.end_of_turn_id)
    body = {"model": "stub", "prompt": "the cat", "echo": True, "logprobs": 1, "max_tokens": 2, "stop": stop}
    if stream:
        parts = [part["choices"][0] for part in chunks(s.client.post(PLAIN, json=body | {"stream": True}).text)]
        text = "".join(part["text"] for part in parts)
        columns: dict[str, list] = {}
        for part in parts:
            for name, column in (part["logprobs"] or {}).items():
                columns.setdefault(name, []).extend(column)
    else:
        choice = s.client.post(PLAIN, json=body).json()["choices"][0]
        text, columns = choice["text"], choice["logprobs"]
    prompt = len(tokenizer.encode("the cat"))
    assert text == "the cat" + ("" if stop else answer)
    assert len({len(column) for column in columns.values()}) == 1
    assert columns["tokens"][prompt:] == listed
    assert all(offset <= len(text) for offset in columns["text_offset"]) and columns["text_offset"][-1] == len(text)
    assert columns["token_logprobs"][-1] == (-0.25 if stop else -0.75)
    without = s.client.post(PLAIN, json=body | {"echo": False}).json()["choices"][0]["logprobs"]["tokens"]
    assert without == ([] if stop or not answer else [" cat"])


def test_scoring_writes_nothing(serving) -> None:
    s = serving()
    body = {"model": "stub", "prompt": "the cat", "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = s.client.post(PLAIN, json=body).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("the cat", "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert s.engine.requests[0].max_new_tokens == 0
    without = s.client.post(PLAIN, json=body | {"logprobs": None}).json()
    assert without["choices"][0]["text"] == "the cat" and len(s.engine.requests) == 1


def test_the_engine_gets_the_settings_of_the_request(serving, ask, tokenizer) -> None:
    s = serving()
    settings = {"temperature": 0, "top_p": 0.5, "presence_penalty": 1, "frequency_penalty": -1,
                "logit_bias": {"5": 3}, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5,
                "max_completion_tokens": 4, "seed": 3, "n": 2}  # fmt: skip
    assert (
        s.client.post(CHAT, json=ask | settings | {"max_tokens": 9}).json()["choices"][0]["finish_reason"] == "length"
    )
    first, second = s.engine.requests
    how = first.sampling
    assert (how.temperature, how.top_p, how.presence_penalty, how.frequency_penalty) == (0, 0.5, 1, -1)
    assert (how.logit_bias, how.top_k, how.min_p, how.repetition_penalty) == (((5, 3),), 7, 0.1, 1.5)
    assert first.max_new_tokens == 4 and first.seed != second.seed
    assert first.stop_ids == {tokenizer.end_of_turn_id, tokenizer.end_of_text_id}
    s.client.post(CHAT, json=ask | settings)
    assert [request.seed for request in s.engine.requests[2:]] == [first.seed, second.seed]
    s.client.post(CHAT, json=ask)
    last = s.engine.requests[-1]
    assert last.max_new_tokens == 64 - len(last.prompt) and last.sampling.temperature == 1


def test_best_of_gives_the_likeliest(serving) -> None:
    s = serving("cat")
    logprobs = iter([-3.0, -1.0, -2.0, -3.0, -1.0, -2.0])
    run = s.engine.run

    def with_logprob(request, listener, handle):
        logprob = next(logprobs)
        s.engine.answer = [40 + round(-logprob)] * 3
        run(
            request,
            lambda event: listener(type(event)(event.id, logprob, []) if hasattr(event, "id") else event),
            handle,
        )

    s.engine.run = with_logprob
    body = {"model": "stub", "prompt": "x", "n": 2, "best_of": 3, "logprobs": 0}
    answer = s.client.post(PLAIN, json=body).json()
    assert [choice["logprobs"]["token_logprobs"][0] for choice in answer["choices"]] == [-1.0, -2.0]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 9


def test_of_several_answers_an_empty_one_is_not_the_best(serving) -> None:
    s = serving("cat")
    run, said = s.engine.run, iter([[], [40], []])

    def empty_or_not(request, listener, handle):
        s.engine.answer = next(said)
        run(request, listener, handle)

    s.engine.run = empty_or_not
    answer = s.client.post(PLAIN, json={"model": "stub", "prompt": "x", "best_of": 3, "logprobs": 0}).json()
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [-0.25]


def test_what_was_read_before_is_counted_for_each_prompt(serving) -> None:
    s = serving("cat")
    known = iter([3, 5, 7, 4])

    def run(request, listener, handle):
        listener(Done("stop", len(request.prompt), next(known)))

    s.engine.run = run
    bill = s.client.post(PLAIN, json={"model": "stub", "prompt": ["a cat", "a mat"], "n": 2}).json()["usage"]
    assert bill["prompt_tokens_details"] == {"cached_tokens": 3 + 4}
    assert bill["prompt_tokens"] == len(s.engine.requests[0].prompt) + len(s.engine.requests[2].prompt)


def test_a_stop_string_ends_the_answer_and_frees_the_slot(serving, ask) -> None:
    s = serving("one two three four five six", pause=0.002)
    answer = s.client.post(CHAT, json=ask | {"stop": "three"}).json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("one two ", "stop")
    assert [reason for reason, _ in s.engine.ended] == ["cancelled"]
