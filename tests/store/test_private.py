"""The server's data are for their owner alone, whatever the umask, also where they were open before."""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tutelage.store import migrate
from tutelage.store.database import Database, sqlite_url
from tutelage.store.tables import Setting
from tutelage.web.keys import open_store


@pytest.fixture(autouse=True, params=[0o000, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def fill(database: Database) -> None:
    with database.write() as session:
        session.merge(Setting(key="x", value={}))


FILES = {"tutelage.db", "tutelage.db-wal", "tutelage.db-shm", "tutelage.db.lock", "setting-up.lock", "pepper"}


def test_what_a_server_creates_is_private(tmp_path: Path) -> None:
    data = tmp_path / "a" / "data"
    database, _ = open_store(data, "")
    fill(database)
    assert modes(data) == dict.fromkeys(FILES, 0o600) and modes(data.parent) == {"data": 0o700}
    database.close()


def test_what_was_open_is_closed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    database, _ = open_store(data, "")
    fill(database)
    for name in FILES:
        (data / name).chmod(0o644)
    data.chmod(0o755)
    again, _ = open_store(data, "")
    fill(again)
    assert modes(data) == dict.fromkeys(FILES, 0o600) and modes(tmp_path) == {"data": 0o700}
    again.close()
    database.close()


def test_a_folder_of_other_things_is_left_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("notes.txt", "tutelage.db2"):
        (tmp_path / name).touch(0o666)
    tmp_path.chmod(0o755)
    before = modes(tmp_path)
    with caplog.at_level(logging.WARNING):
        database, _ = open_store(tmp_path, "")
    database.close()
    assert modes(tmp_path.parent)[tmp_path.name] == 0o755 and str(tmp_path) in caplog.text
    assert modes(tmp_path).items() >= before.items() and modes(tmp_path)["tutelage.db"] == 0o600


def test_a_copy_made_before_a_migration_is_private(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "d" / "t.db"))
    migrate.upgrade(database)
    fill(database)
    migrate.back_up(database, "0000")
    (copy,) = (tmp_path / "d").glob("*.before-*")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with Database(sqlite_url(copy)).read() as session:
        assert session.execute(text("SELECT count(*) FROM settings")).scalar_one() == 1
    database.close()
