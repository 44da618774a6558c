"""What people said on the page comes back out as records that the stages read: whose, which, and in which words."""

import json
import stat
from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update

from tutelage import cli
from tutelage.data.records import read_comparisons, read_demonstrations, read_feedback, read_prompts
from tutelage.moderation.training import read_flags
from tutelage.store.consent import recording_of
from tutelage.store.database import sqlite_url
from tutelage.store.tables import ChatMessage, Comparison, Consent, Conversation, ModerationFlag
from tutelage.store.training_data import TrainingData, training_data

KINDS = ("kto", "comparisons", "demonstrations", "flags", "prompts")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> SimpleNamespace:
    """The URL of a server's database, and how a person names it to a verb."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").new_database()
        return SimpleNamespace(url=url, named=url)
    return SimpleNamespace(url=sqlite_url(tmp_path / "data" / "tutelage.db"), named=str(tmp_path / "data"))


@pytest.fixture
def chat(keeping_site: Any, place: SimpleNamespace) -> Any:
    """A site, a person whose chats are kept and may train, and a first answer of theirs."""
    made = keeping_site("first answer", *["second answer"] * 9, url=place.url)
    made.someone = made.person()
    made.someone.keep()
    made.start = asked(made.someone, "hello", system="be kind")
    return made


def asked(person: Any, question: str, **more: Any) -> dict[str, Any]:
    return person.ask(question, keep=True, **more)[0]["start"]


def thumb(person: Any, answer: str, value: int, **more: Any) -> None:
    assert person.send("PUT", f"/chat/messages/{answer}/thumb", {"value": value} | more)[0] == 200


def better(person: Any, answer: str, text: str) -> Any:
    status, shown = person.send("POST", f"/chat/messages/{answer}/better", {"text": text})
    assert status == 200
    return shown


def compare(person: Any, start: dict[str, Any], winner: str | None) -> dict[str, str]:
    """Generate another answer to the question and choose. winner: first, second, tie, both_bad or None."""
    conversation, question = start["conversation"]["id"], start["question"]
    new = person.ask("x", conversation=conversation, question=question, compare=True)[0]["start"]["answer"]
    pair = person.send("POST", "/chat/comparisons", {"first": start["answer"], "second": new})[1]
    if winner:
        sides = {"first": start["answer"], "second": new}
        side = next((s for s in "ab" if pair[s] == sides.get(winner)), winner)
        assert person.send("POST", f"/chat/comparisons/{pair['id']}", {"winner": side})[0] == 204
    return pair


def exported(site: Any, kind: Any) -> TrainingData:
    with site.database.snapshot() as session:
        return training_data(session, kind)


def reread(folder: Path, found: TrainingData, read: Any) -> list[Any]:
    """The records as a stage's reader returns them, from a file written with the json module."""
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in found.records), encoding="utf-8")
    return read([path])


def test_a_thumb(chat: Any, tmp_path: Path) -> None:
    thumb(chat.someone, chat.start["answer"], 1)
    thumb(chat.someone, chat.start["answer"], -1, reasons=["untrue", "denigrates"], comment="no")  # the last counts
    other = asked(chat.someone, "and again")
    thumb(chat.someone, other["answer"], 1)
    thumb(chat.someone, other["answer"], 0)  # taken back
    found = exported(chat, "kto")
    (record,) = found.records
    assert (record["reasons"], record["comment"], record["model"]) == (["untrue", "denigrates"], "no", "tiny")
    assert record["weights"] == "fp_tiny" and record["created"].startswith("20") and record["id"].startswith("fbk_")
    (read,) = reread(tmp_path, found, read_feedback)
    assert read.prompt == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert (read.response, read.thumb, read.source) == ("first answer", -1, "chat page")
    assert read.conversation == chat.start["conversation"]["id"] and chat.someone.id not in json.dumps(record)
    (flag,) = reread(tmp_path, exported(chat, "flags"), lambda paths: read_flags(paths[0]))
    assert (flag.text, flag.categories, flag.annotator) == ("first answer", {"hate"}, read.annotator)


def test_a_comparison_and_a_better_answer(chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"first": (1, 2), "second": (2, 1), "tie": (1, 1), "both_bad": (1, 1)}
    decided = list(product(ranks, (0, 1)))
    for winner, first_is_a in decided:
        monkeypatch.setattr("tutelage.server.chat.feedback.secrets.randbelow", lambda most, side=first_is_a: side)
        compare(chat.someone, chat.start, winner)
    better(chat.someone, chat.start["answer"], "the best one")
    found = exported(chat, "comparisons")
    read = reread(tmp_path, found, read_comparisons)
    assert len(read) == 9
    for (winner, first_is_a), one in zip(decided, read, strict=False):  # in order of time, as they were shown
        by_text = dict(zip(one.responses, one.ranks, strict=True))
        assert (by_text["first answer"], by_text["second answer"]) == ranks[winner]
        assert one.responses.index("second answer") == first_is_a and one.prompt[-1]["content"] == "hello"
    assert (read[-1].responses, read[-1].ranks) == (["the best one", "first answer"], [1, 2])
    assert found.records[-1]["model"] == [None, "tiny"]
    (demonstration,) = reread(tmp_path, exported(chat, "demonstrations"), read_demonstrations)
    assert [turn["content"] for turn in demonstration.messages] == ["be kind", "hello", "the best one"]
    assert demonstration.annotator == read[0].annotator


def test_a_chat_that_goes_on(chat: Any, tmp_path: Path) -> None:
    """The prompt is the branch that the answer belongs to, with a better answer in place of the model's."""
    shown = better(chat.someone, chat.start["answer"], "a good one")
    conversation = chat.start["conversation"]["id"]
    later = chat.someone.ask("and now?", conversation=conversation, parent=shown["id"])[0]["start"]
    thumb(chat.someone, later["answer"], 1)
    thumb(chat.someone, shown["id"], 1)
    own, answered = reread(tmp_path, exported(chat, "kto"), read_feedback)[::-1]
    assert [turn["content"] for turn in answered.prompt] == ["hello", "a good one", "and now?"]
    assert [turn["content"] for turn in own.prompt] == ["be kind", "hello"] and own.response == "a good one"
    prompts = reread(tmp_path, exported(chat, "prompts"), read_prompts)
    assert [p.prompt[-1]["content"] for p in prompts] == ["hello", "and now?"]
    assert len({p.split for p in prompts}) == 1 and prompts[0].split in ("train", "valid", "test")
    with chat.database.write() as session:  # as if the context had had no room for the first turn
        session.execute(update(ChatMessage).where(ChatMessage.id == later["answer"]).values(dropped_turns=1))
    assert exported(chat, "kto").records[0]["prompt"] == [{"role": "user", "content": "and now?"}]


def test_what_an_earlier_version_stored_is_redacted_again(chat: Any) -> None:
    answer = chat.start["answer"]
    thumb(chat.someone, answer, -1, reasons=["sexual"])
    compare(chat.someone, chat.start, "first")
    better(chat.someone, answer, "so")
    with chat.database.write() as session:
        session.execute(update(ChatMessage).values(content="ask wx13800138000"))
        session.execute(update(ModerationFlag).values(text="ask wx13800138000"))
    for kind in KINDS:
        said = json.dumps(exported(chat, kind).records)
        assert "13800138000" not in said and "ask wx[PHONE]" in said, kind


def test_what_is_left_out_is_counted(chat: Any) -> None:
    """One row for each reason, of people who differ in one thing."""
    start = chat.start
    thumb(chat.someone, start["answer"], 1)
    compare(chat.someone, start, None)
    shown = better(chat.someone, start["answer"], "first answer")
    never, withdrew, earlier, gone, deleted = (chat.person() for _ in range(5))
    for person, train in ((never, False), (withdrew, True), (earlier, True), (gone, True), (deleted, True)):
        person.keep(train=train)
        person.start = asked(person, "hello")
        thumb(person, person.start["answer"], 1)
    never.keep(train=True)  # too late for the thumb above
    withdrew.keep(train=False)
    gone.send("PUT", "/chat/consent", {"record": False, "train": False})
    temporary = chat.person()
    temporary.ask("a temporary chat")
    with chat.database.write() as session:
        session.execute(update(Consent).where(Consent.user_id == earlier.id).values(text_version="2020-01-01"))
        session.execute(update(Conversation).where(Conversation.user_id == deleted.id).values(deleted_ms=1))
    left_out = {
        "written without consent to training": 1,
        "consent withdrawn": 1,
        "consent given to an earlier text": 1,
        "in a deleted or temporary chat": 1,
    }
    with chat.database.read() as session:  # the page asks again about the new text, and keeps chats meanwhile
        assert (now := recording_of(session, earlier.id)).on and not now.decided
        assert recording_of(session, chat.someone.id).decided
    assert exported(chat, "kto").left_out == left_out and len(exported(chat, "kto").records) == 1
    assert exported(chat, "flags").left_out == left_out and exported(chat, "prompts").left_out == left_out
    assert exported(chat, "comparisons").left_out == {"comparison without a choice": 1, "two equal answers": 1}
    with chat.database.write() as session:
        session.execute(update(ChatMessage).where(ChatMessage.id == start["answer"]).values(content=" "))
        session.execute(update(ChatMessage).where(ChatMessage.id == shown["id"]).values(content=" "))
    assert exported(chat, "kto").left_out == left_out | {"empty answer": 1}
    with chat.database.read() as session:
        assert len(session.scalars(select(Comparison)).all()) == 1


def test_a_stopped_question_is_neither_a_prompt_nor_in_one(keeping_site: Any, place: SimpleNamespace) -> None:
    site = keeping_site(url=place.url)
    person = site.person()
    person.keep()
    start = asked(person, "what is forbidden")
    with site.database.write() as session:
        stopped = {"content": "", "finish_reason": "content_filter"}
        session.execute(update(ChatMessage).where(ChatMessage.id == start["answer"]).values(stopped))
    conversation = start["conversation"]["id"]
    later = person.ask("hello", conversation=conversation, parent=start["answer"])[0]["start"]
    thumb(person, later["answer"], 1)
    assert [record["prompt"] for record in exported(site, "kto").records] == [[{"role": "user", "content": "hello"}]]
    found = exported(site, "prompts")
    assert len(found.records) == 1 and found.left_out == {"question stopped by moderation": 1}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(["feedback", "export", *words])
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command(chat: Any, place: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thumb(chat.someone, chat.start["answer"], 1)
    compare(chat.someone, chat.start, "second")
    better(chat.someone, chat.start["answer"], "更好的回答")
    for kind in KINDS:
        out = tmp_path / "out" / f"{kind}.jsonl"
        code, said, _ = run(capsys, "--data", place.named, "--kind", kind, "--out", str(out))
        count = Counter(kto=1, comparisons=2, demonstrations=1, flags=1, prompts=1)[kind]
        assert (code, said) == (0, f"{out}: {count} exported, 0 left out\n")
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
        code, said, told = run(capsys, "--data", place.named, "--kind", kind)
        assert said == out.read_text(encoding="utf-8") and told == f"{kind}: {count} exported, 0 left out\n"
    by_url = run(capsys, "--data", "nowhere", "--database", place.url, "--kind", "prompts")
    assert by_url == (0, said, told)


def test_mistakes_are_one_line_and_create_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tutelage.db").write_text("not a database at all, but long enough to be one" * 100)
    before = sorted(tmp_path.rglob("*"))
    for data in (tmp_path / "none", tmp_path / "text", f"sqlite:///{tmp_path}/empty.db", "mysql://a/b", "sqlite://"):
        code, said, told = run(capsys, "--data", str(data), "--kind", "kto")
        assert (code, said, told.count("\n")) == (2, "", 1), data
    assert [path for path in sorted(tmp_path.rglob("*")) if not path.name.endswith(".lock")] == before
