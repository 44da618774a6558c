"""Fixtures: a site whose model generates given answers, and people who visit it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripted import Models, ScriptedEngine
from starlette.testclient import TestClient

from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.server.app import create_app
from tutelage.store import migrate
from tutelage.store.database import Database, sqlite_url
from tutelage.store.ids import new_id
from tutelage.store.tables import User
from tutelage.text.tokenizer import Tokenizer
from tutelage.web import people
from tutelage.web.keys import KeyRing
from tutelage.web.pepper import read_pepper


class Person:
    """A person who is signed in, and the requests that their page would send."""

    def __init__(self, site: Any, role: str):
        self.id = new_id("usr_")
        with site.database.write() as session:
            session.add(User(id=self.id, name=role, role=role))
        self.client = TestClient(site.app, headers={"accept": "application/json"}, follow_redirects=False)
        self.client.post(f"/signin/{people.make_link(site.database, self.id)}")
        self.csrf = self.client.get("/chat").text.split('data-csrf="')[1].split('"')[0]

    def send(self, method: str, path: str, body: Any = None) -> Any:
        response = self.client.request(method, path, json=body, headers={"x-csrf-token": self.csrf})
        return response.status_code, response.json() if response.content else None

    def ask(self, *said: str, **more: Any) -> list[dict[str, Any]]:
        """Ask the last of these texts; the earlier ones are alternating turns. Returns the answer's events."""
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        body = {"model": "tiny", "messages": messages} | more
        response = self.client.post("/chat/answers", json=body, headers={"x-csrf-token": self.csrf})
        if response.status_code != 200:
            return [response.json()]
        lines = [line for line in response.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    def keep(self, train: bool = True) -> None:
        """Consent to recording, if the policy allows it."""
        assert self.send("PUT", "/chat/consent", {"record": True, "train": train})[0] == 200


Site = Callable[..., Any]


@pytest.fixture
def site(tmp_path: Path, tokenizer: Tokenizer) -> Iterator[Site]:
    """site("an answer", "the next", pause=0.0, moderation={}, models=..., url=...): app, database, engine, person()."""
    opened: list[Database] = []

    def start(
        *answers: str,
        pause: float = 0.0,
        moderation: dict[str, Any] | None = None,
        models: Any = None,
        url: str | None = None,
    ) -> Any:
        database = Database(url or sqlite_url(tmp_path / f"{len(opened)}.db"))
        opened.append(database)
        migrate.upgrade(database)
        engine = ScriptedEngine(tokenizer, answers or ("fine, thank you",), pause)
        moderator = Moderator(ModerationConfig(**(moderation or {})))
        app = create_app(database, KeyRing(database, read_pepper(tmp_path)), models or Models(tiny=engine), moderator)
        found = SimpleNamespace(app=app, database=database, engine=engine)
        found.person = lambda role="user": Person(found, role)
        return found

    yield start
    for database in opened:
        database.close()


@pytest.fixture
def keeping_site(site: Site) -> Site:
    """The same site, with a policy that allows recording."""

    def start(*answers: str, **more: Any) -> Any:
        made = site(*answers, **more)
        assert made.person("admin").send("PUT", "/chat/policy", {"allowed": True})[0] == 200
        return made

    return start


def parts(events: list[dict[str, Any]]) -> SimpleNamespace:
    """The start event, the whole text and the done event."""
    text = "".join(event["text"] for event in events if "text" in event)
    return SimpleNamespace(start=events[0].get("start"), text=text, done=events[-1].get("done"))


@pytest.fixture
def heard() -> Callable[[list[dict[str, Any]]], SimpleNamespace]:
    return parts
