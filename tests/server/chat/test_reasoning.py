"""The reasoning of an answer on the chat page: folded, kept with recorded chats, and given back to the template."""

import json
from html import unescape
from typing import Any

import pytest
from sqlalchemy import select

from tutelage.store.tables import ChatMessage
from tutelage.text.template import Template

ANSWER = "<think>\nthe **cat** <b>sat</b>\n</think>\n\nthe dog sat"
FOLDED = (
    '<details class="reasoning"><summary>{}</summary>\n<p>the <strong>cat</strong> &lt;b&gt;sat&lt;/b&gt;</p>\n'
    "</details>\n<p>the dog sat</p>\n"
)


def together(events: list[dict[str, Any]], name: str) -> str:
    return "".join(event.get(name, "") for event in events)


def test_reasoning_is_streamed_apart_and_folded_in_the_html(site) -> None:
    for opened in (False, True):
        made = site(ANSWER.removeprefix("<think>\n") if opened else ANSWER)
        if opened:  # the template opens the reasoning, as DeepSeek-R1's does
            words = made.engine.tokenizer
            made.engine.tokenizer = type(words)(words._backend, words.settings | {
                "chat_template": words.chat_template + "{{ '<think>\\n' if add_generation_prompt }}"
            })  # fmt: skip
        events = made.person().ask("where is the cat?")
        assert together(events, "reasoning") == "the **cat** <b>sat</b>" and together(events, "text") == "the dog sat"
        assert events[-1]["done"]["html"] == FOLDED.format("Reasoning")


def test_its_name_is_in_the_readers_language(site) -> None:
    person = site(ANSWER).person()
    person.client.cookies.set("lang", "zh")
    assert person.ask("x")[-1]["done"]["html"] == FOLDED.format("思考过程")
    body = {"text": "the dog sat", "reasoning": "the **cat** <b>sat</b>"}  # of an answer that was stopped
    assert person.send("POST", "/chat/markdown", body) == (200, {"html": FOLDED.format("思考过程")})


def test_an_answer_cut_off_in_its_reasoning_has_no_text(site) -> None:
    events = site(ANSWER).person().ask("x", settings={"max_tokens": 12})
    done = events[-1]["done"]
    assert done["finish_reason"] == "length" and "text" not in {key for event in events for key in event}
    assert done["html"].startswith("<details") and done["html"].endswith("</details>\n")


def test_a_recorded_chat_keeps_it_redacted_and_gives_it_back(site, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(ANSWER.replace("sat</b>", "anna@example.org</b>"))
    made.person("admin").send("PUT", "/chat/policy", {"allowed": True})
    person = made.person()
    person.keep()
    events = person.ask("hello", keep=True)
    start = events[0]["start"]
    with made.database.read() as session:
        row = session.scalars(select(ChatMessage).where(ChatMessage.role == "assistant")).one()
    assert row.content == "the dog sat" and row.reasoning == "the **cat** <b>[EMAIL]</b>"
    assert sum(row.redacted.values()) == 1
    page = person.client.get(f"/chat/{start['conversation']['id']}", headers={"accept": "text/html"}).text
    shown = json.loads(unescape(page.split("data-page='")[1].split("'")[0]))["messages"][1]
    assert shown["html"].startswith('<details class="reasoning"><summary>Reasoning</summary>')
    seen: list[Any] = []
    render = Template.render
    monkeypatch.setattr(Template, "render", lambda self, *given: seen.append(given[0]) or render(self, *given))
    person.ask("and?", conversation=start["conversation"]["id"], parent=start["answer"])
    assert seen[-1][1]["reasoning_content"] == row.reasoning


def test_a_chat_that_is_not_kept_sends_it_along(site, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = site(ANSWER), []
    render = Template.render
    monkeypatch.setattr(Template, "render", lambda self, *given: seen.append(given[0]) or render(self, *given))
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "the dog", "reasoning": "hm"},
        {"role": "user", "content": "and?"},
    ]
    assert made.person().ask("", messages=turns)[-1]["done"]
    assert seen[-1][1] == {"role": "assistant", "content": "the dog", "reasoning_content": "hm", "thinking": "hm"}
