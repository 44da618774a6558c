"""A full disk: acknowledged data stays, new data is refused with StorageError, and free space ends the problem."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from tutelage.store import migrate
from tutelage.store.database import Database, StorageError, failures_named, sqlite_url
from tutelage.store.tables import Setting

# Runs in a new mount namespace, with a file system of 2 MiB that a second file fills up.
ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from sqlalchemy import text
from tutelage.store import migrate
from tutelage.store.database import Database, StorageError, sqlite_url
from tutelage.store.tables import Setting
disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
(disk / "else").write_bytes(bytes(400_000))
database = Database(sqlite_url(disk / "t.db"))
migrate.upgrade(database)
stored = 0
def store():
    global stored
    with database.write() as session:
        session.add(Setting(key=f"row-{stored}", value={"text": "x" * 2000}))
    stored += 1
try:
    while True:
        store()
except StorageError as error:
    print("full", error.full, error)
for _ in range(3):
    try:
        store()
    except StorageError:
        print("refused")
with database.read() as session:
    print("kept", stored, session.execute(text("SELECT count(*) FROM settings WHERE key LIKE 'row-%'")).scalar_one())
    print(session.execute(text("PRAGMA integrity_check")).scalar_one())
(disk / "else").unlink()
store()
database.close()
database = Database(sqlite_url(disk / "t.db"))
with database.read() as session:
    print("kept", stored, session.execute(text("SELECT count(*) FROM settings WHERE key LIKE 'row-%'")).scalar_one())
    print(session.execute(text("PRAGMA integrity_check")).scalar_one())
database.close()
"""


def test_a_file_system_without_room(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user may make a mount namespace here")
    command = ["unshare", "-rm", sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "full True the database failed: database or disk is full" and said[1:4] == ["refused"] * 3
    first, again = said[4].split(), said[6].split()
    assert first[1] == first[2] and again[1] == again[2] and int(again[1]) == int(first[1]) + 1 > 20
    assert said[5] == said[7] == "ok"


@pytest.fixture
def small(tmp_path: Path):
    """A database with a maximum size, and the list that sets its number of pages."""
    database = Database(sqlite_url(tmp_path / "t.db"))
    migrate.upgrade(database)
    with database.read() as session:
        pages = [session.execute(text("PRAGMA page_count")).scalar_one() + 5]
    database.engine.dispose()

    @event.listens_for(database.engine, "begin")
    def bounded(connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages[0]}")

    yield database, pages
    database.close()


def test_a_block_that_did_not_fit_leaves_nothing(small) -> None:
    database, pages = small
    with pytest.raises(StorageError) as refused, database.write() as session:
        session.add(Setting(key="first", value={}))
        session.flush()
        session.add(Setting(key="large", value={"text": "x" * 100_000}))
    assert refused.value.full
    with database.read() as session:
        assert session.get(Setting, "first") is None
    pages[0] = 10_000
    with database.write() as session:
        session.add(Setting(key="large", value={"text": "x" * 100_000}))
    with database.read() as session:
        assert session.get(Setting, "large")


def test_a_checkpoint_that_fails_fails_no_commit(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("tutelage.store.database.COMMITS_PER_CHECKPOINT", 1)
    database = Database(sqlite_url(tmp_path / "t.db"))
    migrate.upgrade(database)
    with database.write() as session:
        session.add(Setting(key="a", value={}))
    log = tmp_path / "t.db-wal"
    assert log.stat().st_size > 0
    monkeypatch.setattr(database, "_writer", Database(sqlite_url(tmp_path / "nowhere" / "t.db"))._writer)
    (tmp_path / "nowhere").rename(tmp_path / "gone")
    database._checkpoint("PASSIVE")
    assert "checkpoint of the database failed" in caplog.text


def test_postgresql_says_it_otherwise() -> None:
    psycopg = pytest.importorskip("psycopg")
    for cause, full in ((psycopg.errors.DiskFull("no space"), True), (psycopg.OperationalError("no answer"), False)):
        with pytest.raises(StorageError) as refused, failures_named():
            raise OperationalError("INSERT", {}, cause)
        assert refused.value.full == full
    with pytest.raises(OperationalError), failures_named():
        raise OperationalError("INSERT", {}, psycopg.errors.InvalidPassword("no"))
    with pytest.raises(StorageError), Database("postgresql://nobody@127.0.0.1:9/none").read() as session:
        session.execute(text("SELECT 1"))


def test_nearly_full_is_said_before_it_is_full(tmp_path: Path, monkeypatch) -> None:
    database = Database(sqlite_url(tmp_path / "t.db"))
    database.check_room()
    monkeypatch.setattr("tutelage.store.database.LEAST_FREE_BYTES", 2**62)
    with pytest.raises(StorageError) as refused:
        database.check_room()
    assert refused.value.full
    database.close()
