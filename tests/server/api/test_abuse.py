"""What one caller sends costs that caller: long texts, large bodies, deep JSON; and a revoked key's requests end."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import pytest
from live import wait_for

from tutelage.server.api import call, choices, stored_responses
from tutelage.store.database import StorageError
from tutelage.web import errors
from tutelage.web.errors import ApiError
from tutelage.web.keys import revoke
from tutelage.web.large_bodies import LARGE, LargeBodies
from tutelage.web.limits import Limits

CHAT, PLAIN, MODERATIONS = "/v1/chat/completions", "/v1/completions", "/v1/moderations"
WORDS = "the cat sat on the mat "


def left(s: SimpleNamespace) -> float:
    return s.app.state.limits._bucket(s.key).left


def bodies(text: str) -> dict[str, dict]:
    talk = [{"role": "user", "content": text}]
    return {
        CHAT: {"model": "stub", "messages": talk},
        PLAIN: {"model": "stub", "prompt": ["hello", text]},
        "/v1/scores": {"model": "judge", "input": [[*talk, {"role": "assistant", "content": "x"}]]},
    }


@pytest.mark.parametrize("path", [CHAT, PLAIN, "/v1/scores"])
def test_a_text_that_is_too_long_is_refused_and_paid_for(serving, path: str) -> None:
    s = serving(key={"tokens_per_minute": 20_000})
    body = bodies(WORDS * 2000)[path]
    for paid in (11_500, 23_000):  # a token per four characters
        refused = s.client.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert "at least" in refused.json()["error"]["message"]
        assert left(s) == pytest.approx(20_000 - paid, abs=200)
    refused = s.client.post(path, json=bodies("hello")[path])
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
    assert s.client.get("/v1/models").status_code == 200  # which costs no tokens


def test_what_fits_costs_its_tokens_alone(serving, ask) -> None:
    s = serving("the cat", key={"tokens_per_minute": 20_000})
    used = s.client.post(CHAT, json=ask).json()["usage"]["total_tokens"]
    assert left(s) == pytest.approx(20_000 - used, abs=20)


def test_moderation_is_paid_for(serving) -> None:
    s = serving(key={"tokens_per_minute": 1000})
    assert s.client.post(MODERATIONS, json={"input": WORDS * 100}).status_code == 200
    assert left(s) == pytest.approx(1000 - 575, abs=20)
    assert s.client.post(MODERATIONS, json={"input": [WORDS * 100]}).status_code == 429


def test_a_large_body_of_a_key_without_tokens_is_not_parsed(serving, monkeypatch) -> None:
    s = serving(key={"tokens_per_minute": 1000})
    while left(s) > 0:
        assert s.client.post(CHAT, json=bodies(WORDS * 9000)[CHAT]).status_code == 400
    parsed = []
    monkeypatch.setattr(json, "loads", lambda *given: parsed.append(1))
    body = b"[" * (LARGE + 1)
    refused = s.client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 429 and not parsed


def test_a_request_counts_as_running_while_it_is_read(serving) -> None:
    limits, key = Limits(), SimpleNamespace(id="k", concurrent=1, tokens_per_minute=100)
    with limits.attempt(key, 40), pytest.raises(ApiError, match="1 requests at once"), limits.generation(key, 1):
        pass
    with pytest.raises(ApiError), limits.attempt(key, 40):
        raise ApiError(503, "overloaded")  # not the caller's fault
    assert limits._bucket(key).left == pytest.approx(100, abs=1)


def test_json_that_cannot_be_read_is_invalid_json(serving) -> None:
    deep = 100_000
    unreadable = (b"[" * deep + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"1" * 5000, b'{"a":"\xff"}', b"{")
    s, headers = serving(), {"content-type": "application/json"}
    for path in (CHAT, PLAIN, "/v1/scores", MODERATIONS, "/v1/models", CHAT + "/chatcmpl-" + "a" * 24):
        for body in unreadable:
            refused = s.client.post(path, content=body, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_json"), (path, body[:9])


def test_a_list_of_wrong_items_has_one_error(serving, ask, monkeypatch) -> None:
    """One error per item would take seconds and gigabytes."""
    s, made = serving(), []
    validate = errors.validation_error
    monkeypatch.setattr(errors, "validation_error", lambda found: (made.append(len(found)), validate(found))[1])
    many = {f"x{i}": "x" for i in range(20_000)}
    for wrong in ([None], [{}], [-1], [[]], [1.5]):
        for path, name in ((PLAIN, "prompt"), (CHAT, "messages"), (MODERATIONS, "input"), (CHAT, "stop")):
            assert s.client.post(path, json={"model": "stub", name: wrong * 20_000}).status_code == 400
    for name in ("logit_bias", "metadata"):
        assert s.client.post(CHAT, json=ask | {name: many}).status_code == 400
    assert len(made) == 22 and max(made) < 20


def test_large_bodies_are_parsed_one_at_a_time_and_callers_take_turns() -> None:
    async def scenario() -> tuple[list[str], float]:
        lane, order = LargeBodies(), []

        async def parse(owner: str) -> None:
            await lane.turn(owner)
            order.append(owner)
            time.sleep(0.01)  # parsing blocks the loop

        began = time.monotonic()
        await asyncio.gather(*map(parse, "aaab"))
        gone = asyncio.create_task(lane.turn("c"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait_for(parse("d"), 5)
        return order, time.monotonic() - began

    order, seconds = asyncio.run(scenario())
    assert order == [*"aabad"] and seconds >= 4 * 0.04  # a quarter of the time


@pytest.mark.parametrize("stream", [True, False])
def test_the_requests_of_a_revoked_key_end_within_a_second(serving, ask, stream: bool) -> None:
    s = serving("the cat sat " * 200, pause=0.05)
    began = []

    def revoked() -> None:
        time.sleep(0.2)
        began.append(time.monotonic())
        assert revoke(s.database, s.key.id)  # as another process does

    with s.client:
        threading.Thread(target=revoked).start()
        response = s.client.post(CHAT, json=ask | {"stream": stream, "max_tokens": 40})
        took = time.monotonic() - began[0]
        wait_for(lambda: s.engine.ended)
    error = json.loads(response.text.split("\n\n")[-2][6:]) if stream else response.json()
    assert error["error"]["code"] == "invalid_api_key" and "revoked" in error["error"]["message"]
    assert response.status_code == (200 if stream else 401) and took < 1.0
    assert s.engine.ended[0][0] == "cancelled"


def test_a_key_goes_on_working_while_the_database_does_not_answer(serving, ask, monkeypatch) -> None:
    s = serving()
    assert s.client.post(CHAT, json=ask).status_code == 200
    monkeypatch.setattr("tutelage.web.keys.REMEMBERED_SECONDS", 0.0)

    def gone(*given, **more):
        raise StorageError("locked", full=False)

    monkeypatch.setattr(type(s.database), "read", gone)
    assert s.client.post(CHAT, json=ask).status_code == 200
    unknown = s.client.get("/v1/models", headers={"authorization": "Bearer sk-unknown"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "storage_unavailable")


def test_many_log_probabilities_are_made_a_few_at_a_time_and_not_stored(serving, ask, monkeypatch) -> None:
    made = []
    one = choices.chat_logprobs
    monkeypatch.setattr(choices, "chat_logprobs", lambda some, table: (made.append(len(some)), one(some, table))[1])
    s = serving("the cat sat on the mat and the dog sat on the cat")
    body = ask | {"logprobs": True, "top_logprobs": 2, "n": 16, "max_tokens": 40}
    told = s.client.post(CHAT, json=body).json()["choices"]
    assert len(made) >= 16 and max(made) <= choices.AT_A_TIME
    assert all(len(choice["logprobs"]["content"]) == len(told[0]["logprobs"]["content"]) > 9 for choice in told)
    monkeypatch.setattr(call, "MOST_STORED", 16 * 40 * 3)
    assert s.client.post(CHAT, json=body | {"store": True}).status_code == 200
    refused = s.client.post(CHAT, json=body | {"store": True, "top_logprobs": 3})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")
    assert s.client.post(CHAT, json=body | {"store": True, "logprobs": False, "top_logprobs": None}).status_code == 200
    asked = {"model": "stub", "input": "hello", "store": True, "max_output_tokens": 40}
    assert s.client.post("/v1/responses", json=asked | {"top_logprobs": 20}).status_code == 200
    monkeypatch.setattr(call, "MOST_STORED", 40 * 20)
    refused = s.client.post("/v1/responses", json=asked | {"top_logprobs": 20})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")


def test_a_stored_conversation_has_an_end(serving, monkeypatch) -> None:
    s, asked = serving(), {"model": "stub", "input": "hello", "store": True}
    first = s.client.post("/v1/responses", json=asked).json()["id"]
    assert s.client.post("/v1/responses", json=asked | {"previous_response_id": first}).status_code == 200
    monkeypatch.setattr(stored_responses, "MOST_CHARACTERS", 100)
    refused = s.client.post("/v1/responses", json=asked | {"previous_response_id": first})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "previous_response_id")


def test_a_stop_string_has_an_end(serving, ask) -> None:
    for stop, status in (("x" * 1000, 200), ("x" * 1001, 400), (["x", "y" * 1001], 400)):
        assert serving().client.post(CHAT, json=ask | {"stop": stop}).status_code == status


def test_keys_of_one_person_take_turns(serving, ask) -> None:
    s = serving()
    for _ in range(2):
        secret = s.keys.make(s.owner.id, "another")[1]
        s.client.post(CHAT, json=ask, headers={"authorization": f"Bearer {secret}"})
    assert len({request.owner for request in s.engine.requests}) == 2
