"""The database: no lost updates, read-only readers, and migrations that match the tables."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, IntegrityError

from tutelage.errors import InputError
from tutelage.store import migrate
from tutelage.store.database import Database, StorageError, sqlite_url
from tutelage.store.ids import new_id, now_ms
from tutelage.store.tables import Setting, User


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest, tmp_path: Path):
    """An empty database of each kind."""
    if request.param == "sqlite":
        url = sqlite_url(tmp_path / "store" / "t.db")
    else:
        url = request.getfixturevalue("postgresql").new_database()
    database = Database(url)
    migrate.upgrade(database)
    yield database
    database.close()


def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    assert migrate.differences(database) == []
    assert migrate.current(database) == migrate.head()


def test_a_forgotten_migration_shows(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("DROP TABLE feedback"))
    assert migrate.differences(database)


def test_a_newer_database_is_refused(database: Database) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InputError, match="newer version"):
        migrate.upgrade(database)


def test_no_increment_is_lost_between_threads_and_none_fails(database: Database) -> None:
    """Read, add one, write. With SQLite's default transactions most of these would be lost."""
    with database.write() as session:
        session.add(Setting(key="count", value={"n": 0}))

    def add() -> None:
        for _ in range(25):
            with database.write() as session:
                setting = session.get_one(Setting, "count", with_for_update=True)
                setting.value = {"n": setting.value["n"] + 1}

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.get_one(Setting, "count").value == {"n": 100}


def test_a_nul_in_a_text_is_no_error(database: Database) -> None:
    """PostgreSQL accepts no NUL in text, JSON or queries, but a model may write one."""
    name, value = new_id("usr_"), {"a\0": ["b\0c", {"d": "\0"}], "e": 1, "\\u0000": "kept"}
    with database.write() as session:
        session.add_all([User(id=name, name="x\0y"), Setting(key="nul", value=value)])
    with database.read() as session:
        assert session.get_one(User, name).name.replace("\ufffd", "\0") == "x\0y"
        kept = json.dumps(session.get_one(Setting, "nul").value).replace("\\ufffd", "\\u0000")
        assert json.loads(kept) == value
        assert session.get(User, "usr_\0") is None


def test_a_reading_session_cannot_write(database: Database) -> None:
    refused = (DatabaseError, StorageError)
    with pytest.raises(refused, match="readonly|read-only"), database.read() as session:
        session.add(User(id=new_id("usr_"), name="x"))
        session.flush()


def test_checks_and_foreign_keys_hold(database: Database) -> None:
    for statement in (
        "INSERT INTO users (id, name, role, status, created_ms, updated_ms) VALUES ('u', 'x', 'king', 'active', 0, 0)",
        "INSERT INTO sign_in_links (id, user_id, token_sha256, expires_ms, created_ms, updated_ms) "
        "VALUES ('l', 'nobody', 'x', 0, 0, 0)",
    ):
        with pytest.raises(IntegrityError), database.write() as session:
            session.execute(text(statement))


def test_a_failed_block_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as session:
        session.add(Setting(key="half", value={}))
        session.flush()
        1 / 0  # noqa: B018
    with database.read() as session:
        assert session.get(Setting, "half") is None


WRITER = """
import sys
from tutelage.store.database import Database
from tutelage.store.tables import Setting
database = Database(sys.argv[1])
for n in range(100_000):
    with database.write() as session:
        session.add(Setting(key=f"{sys.argv[2]}-{n}", value={"n": n}))
    print(n, flush=True)
"""


def killed_writer(database: Database, name: str, acknowledged: int) -> int:
    """Start a process that prints each commit, and kill -9 it. Returns how many commits it printed."""
    url = database.url.render_as_string(hide_password=False)
    process = subprocess.Popen([sys.executable, "-c", WRITER, url, name], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    said = [int(next(process.stdout)) for _ in range(acknowledged)]
    process.kill()
    said += [int(line) for line in process.stdout.read().splitlines() if line.strip()]
    process.wait()
    return said[-1] + 1


def rows_of(database: Database, name: str) -> int:
    with database.read() as session:
        return session.execute(
            text("SELECT count(*) FROM settings WHERE key LIKE :name"), {"name": f"{name}-%"}
        ).scalar_one()


def test_kill_9_loses_no_acknowledged_write(database: Database) -> None:
    said = killed_writer(database, "first", 20)
    assert said <= rows_of(database, "first") <= said + 1  # one may have been committed but not printed yet
    if database.is_sqlite:
        with database.read() as session:
            assert session.execute(text("PRAGMA integrity_check")).scalar_one() == "ok"


def test_names_sort_by_the_time_they_were_made() -> None:
    names = [new_id("x_") for _ in range(2000)]
    assert names == sorted(names)
    assert len(set(names)) == 2000
    assert {len(name) for name in names} == {26}


def test_an_unusable_url_is_one_line() -> None:
    for url in ("nonsense", "mysql://host/db"):
        with pytest.raises(InputError):
            Database(url)
    with pytest.raises(InputError, match="check that it runs"):
        migrate.upgrade(Database("postgresql://nobody@127.0.0.1:9/none"))


def test_json_keeps_what_it_is_given(database: Database) -> None:
    value = {"文": [1, 2.5, None, {"a": "\u2028"}]}
    with database.write() as session:
        session.add(Setting(key="json", value=value))
    with database.read() as session:
        found = session.get_one(Setting, "json")
    assert found.value == value
    assert abs(found.updated_ms - now_ms()) < 60_000
