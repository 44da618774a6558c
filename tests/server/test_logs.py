"""The log: one line of JSON per request, however it ends, and never a text or a secret."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from tutelage.store.ids import new_id
from tutelage.store.tables import Source
from tutelage.web import people
from tutelage.web.logs import JSONLines, access

CHAT = "/v1/chat/completions"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The lines logged so far, parsed as JSON."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JSONLines())
    logging.getLogger().addHandler(handler)
    access.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logging.getLogger().removeHandler(handler)
    access.setLevel(logging.NOTSET)


def test_a_request_is_a_line(serving, ask, lines: Lines) -> None:
    s = serving("the cat")
    response = s.client.post(CHAT, json=ask | {"zeal": 1})
    usage = response.json()["usage"]
    (line,) = lines()
    assert line.pop("time").endswith("+00:00") and isinstance(line.pop("ms"), int)
    assert line == {
        "level": "info", "message": "request", "request_id": response.headers["x-request-id"], "method": "POST",
        "route": CHAT, "status": 200, "user": s.owner.id, "key": s.key.id, "model": "stub", "ignored": ["zeal"],
        "prompt_tokens": usage["prompt_tokens"], "completion_tokens": usage["completion_tokens"],
    }  # fmt: skip


def test_a_stream_has_its_line_at_its_end(serving, ask, lines: Lines) -> None:
    s = serving("one two three four five six", pause=0.02)
    s.client.post(CHAT, json=ask | {"stream": True, "max_tokens": 3})
    (line,) = lines()
    assert line["completion_tokens"] == 3 and line["ms"] >= 60 and "gone" not in line


def test_what_is_refused_has_one_too_with_the_reason(serving, ask, lines: Lines) -> None:
    s = serving()
    s.client.post(CHAT, json={})
    TestClient(s.app).get("/v1/models")
    s.client.get("/v1/nowhere")
    s.client.post(CHAT, json=ask | {"model": "nope"})
    s.client.post(CHAT, content=b"x" * 3_000_000)
    TestClient(s.app, follow_redirects=False).get("/chat", headers={"accept": "text/html"})
    found = [(line["status"], line["route"], line.get("error")) for line in lines()]
    assert found == [
        (400, CHAT, "missing_required_parameter"), (401, "none", "invalid_api_key"), (404, "none", "unknown_url"),
        (404, CHAT, "model_not_found"), (413, "none", "request_too_large"), (303, "none", None),
    ]  # fmt: skip
    assert "user" not in lines()[1]


def test_an_error_in_the_middle_of_a_stream_is_named(serving, ask, lines: Lines) -> None:
    serving(fail_after=1).client.post(CHAT, json=ask | {"stream": True})
    assert [(line["status"], line["error"]) for line in lines()] == [(200, "engine_error")]


def test_no_word_and_no_secret_is_in_it(serving, ask, lines: Lines, monkeypatch) -> None:
    """Prompt, completion, sign-in link, key, query and a failed row are never logged."""
    s = serving("whispered")
    said = {"messages": [{"role": "user", "content": "confided"}], "store": True, "metadata": {"mark": "noted-down"}}
    s.client.post(CHAT, json=ask | said)
    s.client.get(CHAT, params={"metadata[mark]": "noted-down"})
    token = people.make_link(s.database, s.owner.id)
    TestClient(s.app, follow_redirects=False).get(f"/signin/{token}")

    def twice(*given: Any) -> None:
        with s.database.write() as session:
            session.add_all([Source(id=new_id("src_"), kind="chat", name="confided") for _ in range(2)])

    monkeypatch.setattr("tutelage.server.api.chat_completions.store_completion", twice)
    failed = s.client.post(CHAT, json=ask | said)
    assert failed.status_code == 500
    (bug,) = [line for line in lines() if line["level"] == "error"]
    assert "Traceback" in bug["exception"] and bug["request_id"] == failed.headers["x-request-id"]
    assert "IntegrityError" in bug["exception"]
    told = json.dumps(lines(), ensure_ascii=False)
    for secret in ("confided", "whispered", token, s.secret, "noted-down"):
        assert secret not in told
    assert len(lines()) == 5


def test_requests_do_not_mix(serving, ask, lines: Lines) -> None:
    s = serving()
    for model in ("stub", "nope", "stub"):
        s.client.post(CHAT, json=ask | {"model": model})
    assert [line.get("error") for line in lines()] == [None, "model_not_found", None]
    assert len({line["request_id"] for line in lines()}) == 3
