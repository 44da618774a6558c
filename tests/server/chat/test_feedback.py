"""What people say of answers, in the store: with provenance and consent, and gone when that is taken back."""

from typing import Any

import pytest
from sqlalchemy import select

from tutelage.moderation.terms import CATEGORIES
from tutelage.server.chat.feedback import DOWN, FLAGS, UP
from tutelage.server.chat.strings import reasons
from tutelage.store.tables import ChatMessage, Comparison, Consent, Conversation, Feedback, ModerationFlag


def rows(site: Any, table: Any) -> list[Any]:
    with site.database.read() as session:
        return list(session.scalars(select(table).order_by(table.id)))


@pytest.fixture
def chat(keeping_site) -> Any:
    """A site, a person whose chats are kept, and an answer of theirs."""
    made = keeping_site("first answer", "second answer")
    made.someone = made.person()
    made.someone.keep()
    made.start = made.someone.ask("hello", keep=True)[0]["start"]
    return made


def test_a_thumb_is_one_row_with_reasons_source_and_consent(chat) -> None:
    path = f"/chat/messages/{chat.start['answer']}/thumb"
    assert chat.someone.send("PUT", path, {"value": 1, "reasons": ["kind"]})[0] == 200
    said = {"value": -1, "reasons": ["untrue", "denigrates"], "comment": "no"}
    assert chat.someone.send("PUT", path, said)[0] == 200
    (row,) = rows(chat, Feedback)
    train = next(c for c in rows(chat, Consent) if c.kind == "train")
    assert (row.kind, row.value, row.reasons, row.text) == ("thumb", -1, ["untrue", "denigrates"], "no")
    assert row.consent_id == train.id and row.source_id == rows(chat, Conversation)[0].source_id
    (flag,) = rows(chat, ModerationFlag)
    assert (flag.text, flag.flagged, flag.categories, flag.consent_id) == ("first answer", True, ["hate"], train.id)
    page = chat.someone.client.get(f"/chat/{chat.start['conversation']['id']}").text
    assert '"thumb": -1' in page and '"comment": "no"' in page
    assert chat.someone.send("PUT", path, {"value": 0})[0] == 200
    assert rows(chat, Feedback) == rows(chat, ModerationFlag) == []


def test_a_liked_answer_is_a_harmless_example(chat) -> None:
    chat.someone.send("PUT", f"/chat/messages/{chat.start['answer']}/thumb", {"value": 1})
    (flag,) = rows(chat, ModerationFlag)
    assert (flag.flagged, flag.categories) == (False, [])


def test_without_consent_to_train_a_judgement_names_none(chat) -> None:
    chat.someone.keep(train=False)
    chat.someone.send("PUT", f"/chat/messages/{chat.start['answer']}/thumb", {"value": 1})
    assert [row.consent_id for row in rows(chat, Feedback)] == [None]
    assert [row.consent_id for row in rows(chat, ModerationFlag)] == [None]


def test_a_better_answer_is_a_demonstration_and_goes_on(chat) -> None:
    path = f"/chat/messages/{chat.start['answer']}/better"
    status, shown = chat.someone.send("POST", path, {"text": "  a **better** one "})
    assert status == 200 and "<strong>better</strong>" in shown["html"] and shown["model"] is None
    chat.someone.send("POST", path, {"text": "a good one"})
    chat.someone.send("POST", f"/chat/messages/{shown['id']}/better", {"text": "the best one"})
    (row,) = rows(chat, Feedback)
    assert (row.kind, row.text, row.message_id) == ("demonstration", "the best one", chat.start["answer"])
    answers = [m for m in rows(chat, ChatMessage) if m.role == "assistant"]
    assert [(m.content, m.selected) for m in answers] == [("first answer", False), ("the best one", True)]
    chat.someone.ask("and now?", conversation=chat.start["conversation"]["id"], parent=shown["id"])
    assert "the best one" in chat.engine.tokenizer.decode(list(chat.engine.asked[-1].prompt))
    assert chat.someone.send("POST", path, {"text": "   "})[0] == 400


def test_a_pair_is_blind_shuffled_and_decided_once(chat) -> None:
    conversation, question = chat.start["conversation"]["id"], chat.start["question"]
    orders = set()
    for _ in range(20):
        new = chat.someone.ask("x", conversation=conversation, question=question, compare=True)[0]["start"]
        status, pair = chat.someone.send(
            "POST", "/chat/comparisons", {"first": chat.start["answer"], "second": new["answer"]}
        )
        assert status == 200 and {pair["a"], pair["b"]} == {chat.start["answer"], new["answer"]}
        orders.add(pair["a"] == chat.start["answer"])
    assert orders == {True, False}
    selected = [m.id for m in rows(chat, ChatMessage) if m.role == "assistant" and m.selected]
    assert selected == [chat.start["answer"]]  # until there is a choice
    assert (
        chat.someone.send("POST", f"/chat/comparisons/{pair['id']}", {"winner": "b", "reasons": ["untrue"]})[0] == 400
    )
    said = {"winner": "b", "reasons": ["true", "well_said"]}
    assert chat.someone.send("POST", f"/chat/comparisons/{pair['id']}", said)[0] == 204
    row = rows(chat, Comparison)[-1]
    assert (row.winner, row.a_message_id, row.b_message_id) == ("b", pair["a"], pair["b"])
    assert row.consent_id and row.source_id and row.decided_ms and row.reasons == ["true", "well_said"]
    assert [m.id for m in rows(chat, ChatMessage) if m.role == "assistant" and m.selected] == [pair["b"]]
    assert chat.someone.send("POST", f"/chat/comparisons/{pair['id']}", {"winner": "a"})[0] == 400


def test_only_answers_to_one_question_are_a_pair(chat) -> None:
    other = chat.someone.ask("y", conversation=chat.start["conversation"]["id"], parent=chat.start["answer"])
    answer = chat.start["answer"]
    for second in (answer, other[0]["start"]["answer"]):
        assert chat.someone.send("POST", "/chat/comparisons", {"first": answer, "second": second})[0] == 400


def test_taking_consent_back_deletes_what_was_kept(chat) -> None:
    chat.someone.send("PUT", f"/chat/messages/{chat.start['answer']}/thumb", {"value": 1})
    status, now = chat.someone.send("PUT", "/chat/consent", {"record": False, "train": False})
    assert status == 200 and now == {"allowed": True, "record": False, "train": False, "decided": True}
    for table in (Conversation, ChatMessage, Feedback, ModerationFlag):
        assert rows(chat, table) == []
    assert [c.granted for c in rows(chat, Consent)] == [True, True, False, False]  # the history stays
    assert chat.someone.send("PUT", "/chat/consent", {"record": False, "train": True})[0] == 400


def test_only_admins_set_the_policy(chat) -> None:
    assert chat.someone.send("PUT", "/chat/policy", {"allowed": False})[0] == 403
    assert chat.person("admin").send("PUT", "/chat/policy", {"allowed": False})[0] == 200
    chat.someone.ask("hello", keep=True)
    assert len(rows(chat, Conversation)) == 1  # the policy is off again, so nothing is recorded


def test_nothing_is_judged_once_the_policy_keeps_nothing(chat) -> None:
    answer, question = chat.start["answer"], chat.start["question"]
    path = f"/chat/messages/{answer}/thumb"
    chat.someone.send("PUT", path, {"value": 1})
    new = chat.someone.ask("x", conversation=chat.start["conversation"]["id"], question=question, compare=True)
    pair = {"first": answer, "second": new[0]["start"]["answer"]}
    made = chat.someone.send("POST", "/chat/comparisons", pair)[1]["id"]
    chat.person("admin").send("PUT", "/chat/policy", {"allowed": False})
    for method, where, body in [
        ("PUT", path, {"value": -1}),
        ("POST", f"/chat/messages/{answer}/better", {"text": "t"}),
        ("POST", "/chat/comparisons", pair),
        ("POST", f"/chat/comparisons/{made}", {"winner": "a"}),
    ]:
        status, told = chat.someone.send(method, where, body)
        assert (status, told["error"]["code"]) == (403, "recording_off"), where
    assert [row.value for row in rows(chat, Feedback)] == [1] and rows(chat, Comparison)[0].winner is None
    assert chat.someone.send("PUT", path, {"value": 0})[0] == 200  # feedback can still be withdrawn
    assert rows(chat, Feedback) == []


def test_reasons_are_the_pages_and_flags_are_categories() -> None:
    shown = reasons(str)
    assert (tuple(shown["up"]), tuple(shown["down"])) == (UP, DOWN)
    assert FLAGS.keys() <= set(DOWN) and set(FLAGS.values()) <= set(CATEGORIES)


def test_what_is_said_of_an_answer_is_stored_without_addresses(chat) -> None:
    path = f"/chat/messages/{chat.start['answer']}"
    chat.someone.send("PUT", f"{path}/thumb", {"value": -1, "comment": "ask zhang.san@example.com"})
    status, shown = chat.someone.send("POST", f"{path}/better", {"text": "打13812345678"})
    assert status == 200 and shown["content"] == "打[PHONE]"
    assert {row.kind: row.text for row in rows(chat, Feedback)} == {
        "thumb": "ask [EMAIL]",
        "demonstration": "打[PHONE]",
    }
    assert rows(chat, ChatMessage)[-1].redacted == {"phone": 1}


def test_unknown_reasons_are_refused(chat) -> None:
    path = f"/chat/messages/{chat.start['answer']}/thumb"
    assert chat.someone.send("PUT", path, {"value": -1, "reasons": ["boring"]})[0] == 400
    assert chat.someone.send("PUT", f"/chat/messages/{chat.start['question']}/thumb", {"value": 1})[0] == 404
