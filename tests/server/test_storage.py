"""A full database, over HTTP: 503 `storage_full`, reads still work, and acknowledged completions are there."""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from sqlalchemy import event
from starlette.testclient import TestClient

from tutelage.store.database import Database, StorageError
from tutelage.web import people

CHAT = "/v1/chat/completions"


def fill(s: SimpleNamespace) -> list[int]:
    """From here on the database may not grow. Put a number into the list to allow it again."""
    pages = [1]  # SQLite keeps its present size if that is larger

    @event.listens_for(s.database.engine, "begin")
    def bounded(connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages[-1]}")

    return pages


def test_what_was_acknowledged_is_there_and_the_rest_is_refused(serving, ask) -> None:
    s = serving("the cat " * 20)
    kept = ask | {"store": True, "messages": [{"role": "user", "content": "hello"}]}
    pages = fill(s)
    known = []
    for _ in range(200):
        response = s.client.post(CHAT, json=kept)
        if response.status_code != 200:
            break
        known.append(response.json()["id"])
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (503, "storage_full", "server_error")
    assert response.headers["x-should-retry"] == "false" and "x-request-id" in response.headers
    events = s.client.post(CHAT, json=kept | {"stream": True}).text.split("\n\n")
    assert json.loads(events[-2][6:])["error"]["code"] == "storage_full"  # the last event; no [DONE]
    listed = s.client.get(CHAT, params={"limit": 100}).json()["data"]
    assert [row["id"] for row in listed] == known
    assert s.client.post(CHAT, json=ask).status_code == 200
    pages.append(100_000)
    assert s.client.post(CHAT, json=kept).status_code == 200


def test_a_key_works_although_its_use_cannot_be_written_down(serving, ask, monkeypatch) -> None:
    s = serving()

    @contextmanager
    def full(database, patience=0) -> Iterator[None]:
        raise StorageError("database or disk is full", full=True)
        yield

    monkeypatch.setattr(Database, "write", full)
    assert s.client.get("/v1/models").status_code == s.client.post(CHAT, json=ask).status_code == 200
    assert s.client.post(CHAT, json=ask | {"store": True}).status_code == 503


def test_a_disk_that_is_nearly_full_is_kept_for_what_must_work(serving, ask, monkeypatch) -> None:
    s = serving()
    known = s.client.post(CHAT, json=ask | {"store": True}).json()["id"]
    asked = len(s.engine.requests)
    monkeypatch.setattr("tutelage.store.database.LEAST_FREE_BYTES", 2**62)
    for stream in (False, True):
        response = s.client.post(CHAT, json=ask | {"store": True, "stream": stream})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_full")
    assert len(s.engine.requests) == asked  # nothing is generated that cannot be stored
    assert s.client.post(CHAT, json=ask).status_code == 200
    assert s.client.delete(f"{CHAT}/{known}").status_code == 200
    assert s.client.get("/readyz").json()["problems"] == ["the disk is nearly full"]
    browser = TestClient(s.app, follow_redirects=False)
    assert browser.post(f"/signin/{people.make_link(s.database, s.owner.id)}").status_code == 303
    assert browser.get("/chat").status_code == 200


def test_a_database_that_does_not_answer_may_be_tried_again(serving, ask, monkeypatch) -> None:
    s = serving()

    def gone(*given) -> None:
        raise StorageError("the server closed the connection", full=False)

    monkeypatch.setattr("tutelage.server.api.chat_completions.store_completion", gone)
    response = s.client.post(CHAT, json=ask | {"store": True})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
    assert "x-should-retry" not in response.headers


def test_a_lock_that_others_hold_stops_only_what_is_stored(serving, ask, monkeypatch, tmp_path) -> None:
    s = serving()
    assert s.client.post(CHAT, json=ask).status_code == 200
    monkeypatch.setattr("tutelage.web.keys.REMEMBERED_SECONDS", 0.0)
    monkeypatch.setattr("tutelage.web.keys.USED_EVERY_MS", 0)
    write = Database.write
    monkeypatch.setattr(Database, "write", lambda database, patience=0.3: write(database, patience))
    with open(tmp_path / "0.db.lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        assert s.client.post(CHAT, json=ask).status_code == 200
        assert time.monotonic() - began < 0.25  # nor does writing down that the key was used wait
        response = s.client.post(CHAT, json=ask | {"store": True})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
        assert response.headers["retry-after"] == "1" and 0.3 < time.monotonic() - began < 2
    assert s.client.post(CHAT, json=ask | {"store": True}).status_code == 200
