"""Fixtures: a site without models, and browsers for it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from tutelage.server.app import create_app
from tutelage.store import migrate
from tutelage.store.database import Database, sqlite_url
from tutelage.store.ids import new_id
from tutelage.store.tables import User
from tutelage.web import people
from tutelage.web.keys import KeyRing
from tutelage.web.pepper import read_pepper


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """app, database, keys and the owner; no model is served."""
    database = Database(sqlite_url(tmp_path / "t.db"))
    migrate.upgrade(database)
    keys = KeyRing(database, read_pepper(tmp_path))
    app = create_app(database, keys, SimpleNamespace(names=list, served={}))
    yield SimpleNamespace(app=app, database=database, keys=keys, owner=people.owner(database), folder=tmp_path)
    database.close()


@pytest.fixture
def browser(site: SimpleNamespace) -> Callable[..., TestClient]:
    """browser("admin"): a signed-in client; browser(None): one that is not signed in."""

    def make(role: str | None = "admin", **headers: str) -> TestClient:
        client = TestClient(site.app, headers={"accept": "text/html"} | headers, follow_redirects=False)
        if role:
            user = User(id=new_id("usr_"), name=role, role=role)
            with site.database.write() as session:
                session.add(user)
            response = client.post(f"/signin/{people.make_link(site.database, user.id)}")
            assert response.status_code == 303
        return client

    return make


def csrf_of(client: TestClient) -> str:
    """The CSRF token in the page's form."""
    return client.get("/account").text.split('name="csrf" value="')[1].split('"')[0]


@pytest.fixture
def csrf() -> Callable[[TestClient], str]:
    return csrf_of
