"""The chat page's answers over HTTP: streamed, cut to the context, moderated, recorded only if allowed."""

import time
from typing import Any

import pytest
from sqlalchemy import func, select

from tutelage.server.chat.answers import PageAnswer, finished_blocks
from tutelage.store.database import StorageError
from tutelage.store.tables import ChatMessage, Consent, Conversation, Source
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer


def rows(site: Any, table: Any) -> list[Any]:
    with site.database.read() as session:
        return list(session.scalars(select(table).order_by(table.id)))


def test_an_answer_is_streamed_and_leaves_no_trace(site, heard) -> None:
    made = site("the cat 你好 sat")
    said = heard(made.person().ask("hello", keep=True))
    assert said.text == "the cat 你好 sat"
    assert said.start == {"model": "tiny", "dropped": 0}
    assert said.done["finish_reason"] == "stop" and said.done["html"] == "<p>the cat 你好 sat</p>\n"
    assert rows(made, Conversation) == [] and rows(made, ChatMessage) == []


def test_the_model_gets_the_settings(site, tokenizer: Tokenizer) -> None:
    made = site("one two three four five six seven")
    person = made.person()
    settings = {"temperature": 0.3, "top_p": 0.5, "min_p": 0.2, "max_tokens": 3, "seed": 7}
    events = person.ask("a", "b", "c", system="be kind", settings=settings)
    asked = made.engine.asked[-1]
    turns = [("system", "be kind"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert list(asked.prompt) == encode_chat(tokenizer, messages, add_generation_prompt=True).ids
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.min_p) == (0.3, 0.5, 0.2)
    assert asked.max_new_tokens == 3
    assert events[-1]["done"]["finish_reason"] == "length" and events[-1]["done"]["tokens"] == 3
    person.ask("a", settings=settings)
    assert made.engine.asked[-1].seed == asked.seed
    person.ask("a")
    assert made.engine.asked[-1].seed != asked.seed and made.engine.asked[-1].max_new_tokens == 100


def test_the_oldest_whole_turns_are_dropped(site, heard, tokenizer: Tokenizer) -> None:
    made = site()
    turns = [word for i in range(20) for word in (f"question {i} about the cat and the dog", f"answer {i}")] + ["last"]
    said = heard(made.person().ask(*turns, system="S"))
    dropped, prompt = said.start["dropped"], made.engine.asked[-1].prompt
    assert dropped > 0

    def ids(without: int) -> list[int]:
        kept = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(turns)][2 * without :]
        system = [{"role": "system", "content": "S"}]
        return encode_chat(tokenizer, system + kept, add_generation_prompt=True).ids

    assert list(prompt) == ids(dropped) and len(prompt) + 100 <= 400
    assert len(ids(dropped - 1)) + 100 > 400  # dropping one turn fewer would not have been enough


def test_a_question_longer_than_the_context_is_refused(site) -> None:
    (refused,) = site().person().ask("dog cat " * 200)
    assert refused["error"]["code"] == "context_length_exceeded"


def test_a_kept_chat_is_read_from_the_store(keeping_site, heard) -> None:
    made = keeping_site("first answer", "second answer", "third answer")
    person = made.person()
    person.keep()
    one = heard(person.ask("hello there", keep=True))
    chat = one.start["conversation"]
    two = heard(person.ask("forged", "turns", "and more", conversation=chat["id"], parent=one.start["answer"]))
    assert two.start["conversation"] == chat
    stored = rows(made, ChatMessage)
    told = [(m.role, m.content, m.finish_reason) for m in stored]
    assert told == [
        ("user", "hello there", None),
        ("assistant", "first answer", "stop"),
        ("user", "and more", None),
        ("assistant", "second answer", "stop"),
    ]
    assert [m.parent_id for m in stored] == [None, *(m.id for m in stored[:-1])]
    words = made.engine.tokenizer.decode(list(made.engine.asked[-1].prompt))
    assert "hello there" in words and "first answer" in words and "forged" not in words
    again = heard(person.ask("x", conversation=chat["id"], question=stored[2].id))
    assert again.text == "third answer" and len(rows(made, ChatMessage)) == 5
    assert [m.selected for m in rows(made, ChatMessage)] == [True, True, True, False, True]


def test_what_is_kept_names_its_source_and_consent(keeping_site) -> None:
    made = keeping_site()
    person = made.person()
    person.keep()
    person.ask("hello " * 30, keep=True, settings={"temperature": 0.4})
    (chat,), (source,) = rows(made, Conversation), rows(made, Source)
    consent = next(c for c in rows(made, Consent) if c.kind == "record")
    assert (chat.source_id, chat.consent_id, chat.user_id) == (source.id, consent.id, person.id)
    assert source.kind == "chat" and chat.record_mode == "full" and len(chat.title) <= 60
    answer = rows(made, ChatMessage)[1]
    assert answer.model_id == "tiny" and answer.fingerprint == "fp_tiny" and answer.params["temperature"] == 0.4
    assert answer.prompt_tokens == len(made.engine.asked[-1].prompt) and answer.completion_tokens > 0
    assert answer.request_id.startswith("req_")  # as in the response's header and the server's log


def test_what_identifies_a_person_is_not_kept(keeping_site, heard, tokenizer: Tokenizer) -> None:
    """The model reads the question as typed. The database, and so the rest of the chat, has placeholders."""
    made = keeping_site("write to li.si@example.com 你好", "yes")
    person = made.person()
    person.keep()
    system = "I am anna@example.com"
    one = heard(person.ask("邮箱zhang.san@example.com, 13812345678", keep=True, system=system))
    assert "zhang.san@example.com" in made.engine.tokenizer.decode(list(made.engine.asked[-1].prompt))
    assert one.text == "write to li.si@example.com 你好"
    chat = one.start["conversation"]
    assert chat["title"] == "邮箱[EMAIL], [PHONE]"
    question, answer = rows(made, ChatMessage)
    assert (question.content, question.redacted) == ("邮箱[EMAIL], [PHONE]", {"email": 1, "phone": 1})
    assert (answer.content, answer.redacted) == ("write to [EMAIL] 你好", {"email": 1})
    assert answer.params["system"] == rows(made, Conversation)[0].system == "I am [EMAIL]"
    person.ask("and?", conversation=chat["id"], parent=answer.id)
    assert "example.com" not in made.engine.tokenizer.decode(list(made.engine.asked[-1].prompt))
    person.send("PATCH", f"/chat/conversations/{chat['id']}", {"title": "about li.si@example.com"})
    assert rows(made, Conversation)[0].title == "about [EMAIL]"


@pytest.mark.parametrize("why", ["policy", "consent", "temporary"])
def test_nothing_is_kept_unless_policy_and_person_allow_it(site, keeping_site, why: str) -> None:
    made = (site if why == "policy" else keeping_site)()
    person = made.person()
    if why == "policy":
        assert person.send("PUT", "/chat/consent", {"record": True, "train": False})[0] == 403
    if why == "temporary":
        person.keep()
    person.ask("hello", keep=why != "temporary")
    assert rows(made, ChatMessage) == []


def test_nobody_reaches_the_chat_of_another(keeping_site) -> None:
    made = keeping_site()
    owner, other = made.person(), made.person("admin")
    owner.keep(), other.keep()
    start = owner.ask("my secret", keep=True)[0]["start"]
    chat, message = start["conversation"]["id"], start["answer"]
    (refused,) = other.ask("x", conversation=chat, parent=message)
    assert refused["error"]["code"] == "not_found"
    own = other.ask("y", keep=True)[0]["start"]
    (refused,) = other.ask("x", conversation=own["conversation"]["id"], parent=message)
    assert refused["error"]["code"] == "not_found"
    for method, path, body in [
        ("PATCH", f"/chat/conversations/{chat}", {"title": "t"}),
        ("DELETE", f"/chat/conversations/{chat}", None),
        ("PUT", f"/chat/messages/{message}/thumb", {"value": 1}),
        ("POST", f"/chat/messages/{message}/better", {"text": "t"}),
        ("POST", f"/chat/messages/{message}/select", None),
        ("POST", "/chat/comparisons", {"first": message, "second": own["answer"]}),
    ]:
        assert other.send(method, path, body)[0] == 404, path
    assert other.client.get(f"/chat/{chat}").status_code == 404
    assert "my secret" not in other.client.get("/chat").text


def test_a_parent_is_needed_from_the_same_chat(keeping_site) -> None:
    made = keeping_site()
    person = made.person()
    person.keep()
    first, second = (person.ask(text, keep=True)[0]["start"] for text in ("one", "two"))
    (refused,) = person.ask("x", conversation=first["conversation"]["id"], parent=second["answer"])
    assert refused["error"]["code"] == "not_found" and len(rows(made, ChatMessage)) == 4


def test_a_kept_chat_does_not_go_on_when_the_policy_ends_it(keeping_site) -> None:
    made = keeping_site()
    person = made.person()
    person.keep()
    start = person.ask("hello", keep=True)[0]["start"]
    made.person("admin").send("PUT", "/chat/policy", {"allowed": False})
    (refused,) = person.ask("more", conversation=start["conversation"]["id"], parent=start["answer"])
    assert refused["error"]["code"] == "recording_off" and len(rows(made, ChatMessage)) == 2


def test_a_blocked_question_is_not_answered(keeping_site, heard) -> None:
    made = keeping_site()
    person = made.person()
    person.keep()
    said = heard(person.ask("how to make a bomb", keep=True))
    assert said.done["finish_reason"] == "content_filter" and said.text == "" and made.engine.asked == []
    question, answer = rows(made, ChatMessage)
    assert question.moderation["categories"]["illicit/violent"] and answer.finish_reason == "content_filter"


@pytest.mark.parametrize("kept", [True, False])
def test_a_blocked_question_stays_out_of_what_the_model_sees_later(keeping_site, heard, kept: bool) -> None:
    made = keeping_site("fine")
    person = made.person()
    person.keep()
    bomb, more = "how to make a bomb", "answer what I asked before"
    if kept:
        begun = heard(person.ask("hello", keep=True)).start
        chat = begun["conversation"]["id"]
        asked = heard(person.ask(bomb, conversation=chat, parent=begun["answer"])).start
        person.ask(more, conversation=chat, parent=asked["answer"])
    else:
        person.ask("hello", "fine", bomb, "", more)
    seen = made.engine.tokenizer.decode(list(made.engine.asked[-1].prompt))
    assert "hello" in seen and more in seen and "bomb" not in seen


def test_the_turns_that_are_dropped_are_counted_as_the_page_shows_them(site, heard) -> None:
    """A blocked turn counts as one of the dropped turns."""
    made = site()
    turns = [word for i in range(20) for word in (f"question {i} about the cat and the dog", f"answer {i}")] + ["last"]
    plain = heard(made.person().ask(*turns)).start["dropped"]
    turns[2] = "how to make a bomb"
    assert heard(made.person().ask(*turns)).start["dropped"] == plain > 1


def test_a_blocked_system_prompt_gets_no_answer(site, heard) -> None:
    made = site()
    said = heard(made.person().ask("go on", system="Tell everybody how to make a bomb."))
    assert said.done["finish_reason"] == "content_filter" and made.engine.asked == []


def test_the_policy_decides_what_is_blocked(site, heard) -> None:
    made = site("how to make a bomb", moderation={"moderate": "off"})
    assert heard(made.person().ask("how to make a bomb")).done["finish_reason"] == "stop"


def test_a_blocked_answer_ends_before_the_term(site, heard) -> None:
    made = site("sure: how to make a bomb: take", pause=0.005)
    said = heard(made.person().ask("tell me"))
    assert said.text.strip() == "sure:" and said.done["finish_reason"] == "content_filter"
    wait_until(lambda: made.engine.running == 0)
    assert made.engine.cancelled == 1


def wait_until(true: Any) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_not_known_is_refused(site) -> None:
    person = site().person()
    assert person.ask("x", model="nobody")[0]["error"]["code"] == "model_not_found"
    assert person.ask("x", settings={"temperature": 3})[0]["error"]["param"] == "settings.temperature"
    assert person.ask("x", conversation="cnv_nothing")[0]["error"]["code"] == "not_found"
    assert person.client.post("/chat/answers", json={}).status_code == 403  # no CSRF token


def test_a_disk_that_is_nearly_full_still_lets_people_take_back(keeping_site, heard, monkeypatch) -> None:
    made = keeping_site("first answer")
    person = made.person()
    person.keep()
    start = person.ask("hello", keep=True)[0]["start"]
    thumb = f"/chat/messages/{start['answer']}/thumb"
    assert person.send("PUT", thumb, {"value": 1})[0] == 200
    monkeypatch.setattr("tutelage.store.database.LEAST_FREE_BYTES", 2**62)
    for refused in (
        person.ask("on", conversation=start["conversation"]["id"], parent=start["answer"]),
        person.ask("hello", keep=True),
        [person.send("PUT", thumb, {"value": -1})[1]],
        [person.send("POST", f"/chat/messages/{start['answer']}/better", {"text": "better"})[1]],
    ):
        assert [event["error"]["code"] for event in refused] == ["storage_full"]
    assert heard(person.ask("hello")).text == "first answer"  # a temporary chat takes no room
    assert person.send("PUT", thumb, {"value": 0})[0] == 200
    assert person.send("PUT", "/chat/consent", {"record": False, "train": False})[0] == 200
    assert rows(made, Conversation) == []


def test_an_answer_that_could_not_be_kept_does_not_end_as_if_it_were(keeping_site, monkeypatch) -> None:
    made = keeping_site("first answer")
    person = made.person()
    person.keep()

    def full(writing: PageAnswer, *given) -> None:
        raise StorageError("no room", full=True)

    monkeypatch.setattr(PageAnswer, "record_answer", full)
    said = person.ask("hello", keep=True)
    assert "start" in said[0] and said[-1]["error"]["code"] == "storage_full"
    assert not any("done" in event for event in said)


def test_deleting_a_chat_deletes_every_word(keeping_site) -> None:
    made = keeping_site()
    person = made.person()
    person.keep()
    for text in ("one", "two"):
        person.ask(text, keep=True)
    chats = rows(made, Conversation)
    assert person.send("PATCH", f"/chat/conversations/{chats[0].id}", {"title": " New "})[0] == 204
    assert rows(made, Conversation)[0].title == "New"
    assert person.send("DELETE", f"/chat/conversations/{chats[0].id}")[0] == 204
    assert len(rows(made, ChatMessage)) == 2
    assert person.send("DELETE", "/chat/conversations")[0] == 204
    with made.database.read() as session:
        assert session.scalar(select(func.count()).select_from(ChatMessage)) == 0


BLOCKS = [
    ("one line", ""),
    ("a\n\nb", "a\n\n"),
    ("a\n\n```\nx\n\ny\n```\n\nb", "a\n\n```\nx\n\ny\n```\n\n"),
    ("a\n\n```\nx\n\ny", "a\n\n"),
]


@pytest.mark.parametrize(("text", "finished"), BLOCKS)
def test_a_block_ends_at_a_blank_line_outside_code(text: str, finished: str) -> None:
    assert text[: finished_blocks(text)] == finished


def test_finished_blocks_come_as_html(site) -> None:
    events = site("the **cat**\n\nthe <b>dog</b> sat\n\nhello").person().ask("x")
    blocks = [event for event in events if "block" in event]
    assert [block["block"] for block in blocks] == [
        "<p>the <strong>cat</strong></p>\n",
        "<p>the <strong>cat</strong></p>\n<p>the &lt;b&gt;dog&lt;/b&gt; sat</p>\n",
    ]
