"""One person in several tabs, and several people at once: nothing is lost, doubled or wrongly refused."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from tutelage.store.tables import ChatMessage, Comparison, Conversation, Feedback, ModerationFlag, Setting, Source

TABS = 6
ROUNDS = 4


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def busy(request: pytest.FixtureRequest, site) -> Any:
    """A site on each kind of database, with a policy that allows recording."""
    url = request.getfixturevalue("postgresql").new_database() if request.param == "postgresql" else None
    made = site("first answer", "second answer", url=url)
    made.admin = made.person("admin")
    assert made.admin.send("PUT", "/chat/policy", {"allowed": True})[0] == 200
    return made


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work(0)` ... `work(count - 1)` in threads that start together. Returns their results."""
    begin, results = threading.Barrier(count), [None] * count

    def one(number: int) -> None:
        begin.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def rows(site: Any, table: Any) -> list[Any]:
    with site.database.read() as session:
        return list(session.scalars(select(table).order_by(table.id)))


def chat_of(site: Any) -> tuple[Any, dict[str, Any]]:
    """A person with a recorded chat, and the `start` event of its first answer."""
    person = site.person()
    person.keep()
    return person, person.ask("hello", keep=True)[0]["start"]


def test_thumbs(busy) -> None:
    for _ in range(ROUNDS):
        person, start = chat_of(busy)
        path = f"/chat/messages/{start['answer']}/thumb"
        said = [{"value": -1, "reasons": ["violent"]}, {"value": 1}, {"value": 0}]
        answers = at_once(TABS, lambda tab: person.send("PUT", path, said[tab % 3]))  # noqa: B023 (over in this round)
        assert [status for status, _ in answers] == [200] * TABS
        thumbs = [row for row in rows(busy, Feedback) if row.message_id == start["answer"]]
        flags = [row for row in rows(busy, ModerationFlag) if row.message_id == start["answer"]]
        assert len(thumbs) == len(flags) <= 1
        assert [row.value == -1 for row in thumbs] == [row.flagged for row in flags]


def test_better_answers(busy) -> None:
    for _ in range(ROUNDS):
        person, start = chat_of(busy)
        path = f"/chat/messages/{start['answer']}/better"
        answers = at_once(TABS, lambda tab: person.send("POST", path, {"text": f"better {tab}"}))  # noqa: B023
        assert [status for status, _ in answers] == [200] * TABS
        (demonstration,) = [row for row in rows(busy, Feedback) if row.message_id == start["answer"]]
        siblings = [row for row in rows(busy, ChatMessage) if row.parent_id == start["question"]]
        assert [row.content for row in siblings if row.selected] == [demonstration.text] and len(siblings) == 2


def test_a_choice_is_made_once(busy) -> None:
    for _ in range(ROUNDS):
        person, start = chat_of(busy)
        chat = start["conversation"]["id"]
        other = person.ask("x", conversation=chat, question=start["question"], compare=True)[0]["start"]["answer"]
        pair = person.send("POST", "/chat/comparisons", {"first": start["answer"], "second": other})[1]
        path = f"/chat/comparisons/{pair['id']}"
        answers = at_once(TABS, lambda tab: person.send("POST", path, {"winner": "ab"[tab % 2]})[0])  # noqa: B023
        assert sorted(answers) == [204] + [400] * (TABS - 1)
        winner = next(row.winner for row in rows(busy, Comparison) if row.id == pair["id"])
        assert winner == "ab"[answers.index(204) % 2]


def test_one_version_of_a_message_is_shown(busy) -> None:
    person, start = chat_of(busy)
    chat, versions = start["conversation"]["id"], [start["answer"]]
    for _ in range(3):
        versions.append(person.ask("x", conversation=chat, question=start["question"])[0]["start"]["answer"])
    for _ in range(ROUNDS):
        paths = [f"/chat/messages/{version}/select" for version in versions]
        assert at_once(4, lambda tab: person.send("POST", paths[tab])[0]) == [204] * 4  # noqa: B023
        assert sum(row.selected for row in rows(busy, ChatMessage) if row.id in versions) == 1


def test_nothing_is_kept_after_a_no(busy) -> None:
    """A chat that begins while its person withdraws consent is deleted with the others, or not recorded."""
    for _ in range(ROUNDS):
        person, _ = chat_of(busy)
        no = {"record": False, "train": False}

        def act(tab: int, person: Any = person, no: dict[str, bool] = no) -> Any:
            return person.ask("hello", keep=True) if tab else person.send("PUT", "/chat/consent", no)

        events = at_once(TABS, act)
        assert events[0][0] == 200 and all("done" in said[-1] for said in events[1:])
        assert [row for row in rows(busy, Conversation) if row.user_id == person.id] == []


def test_a_chat_that_is_deleted_while_it_is_answered(busy) -> None:
    busy.engine.pause = 0.002
    for _ in range(ROUNDS):
        person, start = chat_of(busy)
        path = f"/chat/conversations/{start['conversation']['id']}"

        def act(tab: int, person: Any = person, start: Any = start, path: str = path) -> Any:
            if tab == 0:
                return person.send("DELETE", path)[0]
            return person.ask("on", conversation=start["conversation"]["id"], parent=start["answer"])[-1]

        deleted, *said = at_once(3, act)
        assert deleted == 204 and all("done" in last or last["error"]["code"] == "not_found" for last in said)
        assert [row for row in rows(busy, Conversation) if row.user_id == person.id] == []


def test_the_first_chats_of_several_people(site, busy) -> None:
    people = [busy.person() for _ in range(TABS)]
    for person in people:
        person.keep()
    said = at_once(TABS, lambda number: people[number].ask("hello", keep=True))
    assert all("conversation" in events[0]["start"] for events in said)
    assert [row.name for row in rows(busy, Source)] == ["chat page"] and len(rows(busy, Conversation)) == TABS


def test_the_policy_set_by_several_admins(site, busy) -> None:
    admins = [busy.person("admin") for _ in range(TABS)]
    with busy.database.write() as session:
        session.delete(session.get_one(Setting, "recording"))
    answers = at_once(TABS, lambda number: admins[number].send("PUT", "/chat/policy", {"allowed": True})[0])
    assert answers == [200] * TABS
