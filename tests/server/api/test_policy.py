"""Moderation of input and output in the API."""

import json

import pytest

from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.server.text_work import TextWork

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def strict(tmp_path):
    """A moderation policy that stops one word."""
    terms = tmp_path / "terms.txt"
    terms.write_text("[hate]\nthe cat\n", encoding="utf-8")
    return lambda side: Moderator(ModerationConfig(moderate=side, blocked=("hate",), terms=terms, builtin_terms=False))


@pytest.mark.parametrize("side, reason", [("output", "content_filter"), ("both", "content_filter"), ("input", "stop")])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_where_the_policy_says(serving, ask, strict, side: str, reason: str, stream: bool) -> None:
    s = serving("hello there, the cat sat", pause=0.001)
    s.app.state.text_work = TextWork(strict(side))
    response = s.client.post(CHAT, json=ask | {"stream": stream, "logprobs": True})
    if stream:
        parts = [
            json.loads(line[6:])["choices"][0] for line in response.text.split("\n\n") if line.startswith("data: {")
        ]
        text = "".join(part["delta"].get("content", "") for part in parts)
        ended = parts[-1]["finish_reason"]
        tokens = [token["token"] for part in parts if part["logprobs"] for token in part["logprobs"]["content"]]
    else:
        choice = response.json()["choices"][0]
        text, ended = choice["message"]["content"], choice["finish_reason"]
        tokens = [token["token"] for token in choice["logprobs"]["content"]]
    assert ended == reason
    assert "".join(tokens) == text
    assert text == ("hello there, the cat sat" if side == "input" else text) and ("the cat" in text) == (
        side == "input"
    )
    if side != "input":
        assert text.startswith("hello there") and s.engine.ended[0][0] == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_that_the_policy_refuses_never_reaches_the_model(serving, ask, strict, stream: bool) -> None:
    s = serving()
    s.app.state.text_work = TextWork(strict("input"))
    asked = ask | {"messages": [{"role": "user", "content": "THE  CAT!"}], "n": 2, "stream": stream}
    response = s.client.post(CHAT, json=asked)
    assert response.status_code == 200 and s.engine.requests == []
    if stream:
        parts = [
            json.loads(line[6:])["choices"][0] for line in response.text.split("\n\n") if line.startswith("data: {")
        ]
        assert [p["finish_reason"] for p in parts if p["finish_reason"]] == ["content_filter"] * 2
        assert any("policy" in part["delta"].get("refusal", "") for part in parts)
    else:
        for choice in response.json()["choices"]:
            assert choice["finish_reason"] == "content_filter"
            assert choice["message"]["content"] == "" and "policy" in choice["message"]["refusal"]
    plain = s.client.post(PLAIN, json={"model": "stub", "prompt": "the cat", "stream": stream})
    assert "content_filter" in plain.text and s.engine.requests == []


def test_the_moderation_route_has_openais_shape(serving, strict) -> None:
    s = serving()
    s.app.state.text_work = TextWork(strict("both"))
    answer = s.client.post("/v1/moderations", json={"input": ["a dog", "the cat"]}).json()
    assert answer["id"].startswith("modr-") and [result["flagged"] for result in answer["results"]] == [False, True]
    assert len(answer["results"][0]["categories"]) == 13
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": "cat"}]
    assert len(s.client.post("/v1/moderations", json={"input": parts}).json()["results"]) == 1
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    assert s.client.post("/v1/moderations", json={"input": image}).json()["error"]["code"] == "unsupported_value"
