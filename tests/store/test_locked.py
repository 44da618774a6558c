"""A database that others lock: a refusal that may be tried again, within a deadline."""

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tutelage.errors import InputError
from tutelage.store import migrate
from tutelage.store.database import Database, StorageError, sqlite_url
from tutelage.store.tables import Setting
from tutelage.store.writer_lock import WriterLock


@pytest.fixture
def database(tmp_path: Path):
    made = Database(sqlite_url(tmp_path / "t.db"))
    migrate.upgrade(made)
    yield made
    made.close()


def store(database: Database, patience: float) -> None:
    with database.write(patience) as session:
        session.merge(Setting(key="a", value={}))


def test_a_held_writer_lock_is_not_waited_for_without_end(database: Database, tmp_path: Path, monkeypatch) -> None:
    with open(tmp_path / "t.db.lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for patience in (0.0, 0.2):
            began = time.monotonic()
            with pytest.raises(StorageError) as refused:
                store(database, patience)
            assert not refused.value.full and patience <= time.monotonic() - began < patience + 0.2
        monkeypatch.setattr("tutelage.store.database.PATIENCE", 0.1)
        with database.read() as session:  # reading goes on
            assert session.get(Setting, "a") is None
    store(database, 0.0)


def test_a_server_ends_although_its_lock_is_held(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "u.db"))
    migrate.upgrade(database)
    with open(tmp_path / "u.db.lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        database.close(patience=0.1)
        assert time.monotonic() - began < 2


FOREIGN = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


def test_a_database_that_a_foreign_program_locks(database: Database, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FOREIGN, str(tmp_path / "t.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as foreign:
        assert foreign.stdout and foreign.stdin and foreign.stdout.readline() == "locked\n"
        began = time.monotonic()
        with pytest.raises(StorageError, match="database is locked") as refused:
            store(database, 0.2)
        assert not refused.value.full and time.monotonic() - began < 1
        with database.read() as session:
            assert session.get(Setting, "a") is None
        foreign.stdin.close()
    store(database, 0.2)


def test_another_process_that_sets_up_is_waited_for_with_an_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(migrate, "PATIENCE", 0.1)
    database = Database(sqlite_url(tmp_path / "t.db"))
    with open(tmp_path / "setting-up.lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process has held it"):
            migrate.upgrade(database)
    migrate.upgrade(database)
    database.close()


def test_threads_write_in_the_order_in_which_they_asked(tmp_path: Path) -> None:
    lock, order = WriterLock(tmp_path / "lock"), []

    def write(number: int, patience: float) -> None:
        try:
            with lock.held(patience):
                order.append(number)
                time.sleep(0.02)
        except StorageError:
            order.append(-number)

    with lock.held(1.0):
        threads = [threading.Thread(target=write, args=(n, 0.05 if n == 2 else 5.0)) for n in range(1, 7)]
        for thread in threads:
            thread.start()
            while len(lock._queue) <= threads.index(thread) + 1:
                time.sleep(0.001)
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert order == [-2, 1, 3, 4, 5, 6]


@pytest.mark.slow
def test_postgresql_locked_by_others(postgresql) -> None:
    url = postgresql.new_database()
    database = Database(url)
    migrate.upgrade(database)
    store(database, 1.0)
    with create_engine(url.replace("postgresql:", "postgresql+psycopg:")).connect() as other:
        other.execute(text("LOCK TABLE settings IN ACCESS EXCLUSIVE MODE"))
        for use in (lambda: store(database, 0.3), lambda: read(database)):
            began = time.monotonic()
            with pytest.raises(StorageError) as refused:
                use()
            assert not refused.value.full and time.monotonic() - began < 6
    store(database, 1.0)
    assert read(database)
    database.close()


def read(database: Database) -> Setting | None:
    with database.read() as session:
        return session.get(Setting, "a")
