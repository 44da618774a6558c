"""Fixtures: the API with a stub engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient
from stub import StubEngine, StubModels

from tutelage.server.app import create_app
from tutelage.store import migrate
from tutelage.store.database import Database, sqlite_url
from tutelage.text.tokenizer import Tokenizer
from tutelage.web import people
from tutelage.web.keys import KeyRing
from tutelage.web.pepper import read_pepper


@pytest.fixture
def serving(tmp_path: Path, tokenizer: Tokenizer) -> Iterator[Callable[..., SimpleNamespace]]:
    """serving(text, pause=..., key=dict(...)): clients with a key, the app, and an engine that generates `text`.

    `text` may be token ids, and `words` another tokenizer than the tests' own.
    """
    opened: list[Database] = []

    def start(
        text: str | list[int] = "the cat 你好",
        key: dict[str, Any] | None = None,
        words: Tokenizer = tokenizer,
        context: int = 64,
        **engine: Any,
    ) -> SimpleNamespace:
        database = Database(sqlite_url(tmp_path / f"{len(opened)}.db"))
        opened.append(database)
        migrate.upgrade(database)
        keys = KeyRing(database, read_pepper(tmp_path))
        owner = people.owner(database)
        row, secret = keys.make(owner.id, "test", **({"scopes": ("inference", "admin")} | (key or {})))
        stub = StubEngine(words.encode(text) if isinstance(text, str) else text, **engine)
        app = create_app(database, keys, StubModels(words, stub, context))
        client = TestClient(app, headers={"authorization": f"Bearer {secret}"}, raise_server_exceptions=False)
        openai = OpenAI(
            base_url="http://testserver/v1",
            api_key=secret,
            http_client=client,
            max_retries=0,
            _strict_response_validation=True,
        )
        return SimpleNamespace(
            client=client,
            openai=openai,
            app=app,
            engine=stub,
            keys=keys,
            key=row,
            database=database,
            owner=owner,
            secret=secret,
        )

    yield start
    for database in opened:
        database.close()


@pytest.fixture
def ask() -> dict[str, Any]:
    """A minimal chat request."""
    return {"model": "stub", "messages": [{"role": "user", "content": "hello"}]}
