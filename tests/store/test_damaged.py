"""A damaged database, or a URL that leads nowhere: one line each, whatever the verb, and nothing is replaced."""

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tutelage import cli
from tutelage.store.database import Database, StorageError, sqlite_url
from tutelage.web import people
from tutelage.web.keys import open_store

VERBS = {
    "keys list": ("keys", "list"),
    "keys make": ("keys", "make"),
    "keys revoke": ("keys", "revoke", "laptop"),
    "feedback": ("feedback", "export", "--kind", "kto"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a key and forty pages."""
    data = tmp_path_factory.mktemp("whole") / "data"
    database, ring = open_store(data, "")
    for number in range(60):
        ring.make(people.owner(database).id, f"key {number}")
    database.close()
    return data


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """run("keys", "list", ...) -> (exit code, what was printed to standard error)."""

    def run(*words: str) -> tuple[int, str]:
        try:
            cli.main(list(words))
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().err

    return run


def damage(kind: str, file: Path) -> None:
    content = file.read_bytes()
    if kind == "other":
        file.write_bytes(b"not a database at all\n" * 100)
    elif kind == "half":
        file.write_bytes(content[: len(content) // 2 + 100])
    elif kind == "zeros":
        file.write_bytes(content[:4096] + bytes(len(content) - 4096))
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    elif kind == "no version":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("DROP TABLE alembic_version")
    elif kind == "no table":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("DROP TABLE api_keys")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["other", "half", "zeros", "folder", "no version", "no table"])
def test_damage_is_one_line(whole: Path, tmp_path: Path, run, verb: str, kind: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(whole, data)
    damage(kind, data / "tutelage.db")
    code, said = run(*VERBS[verb], "--data", str(data))
    assert said.count("\n") <= 1 and "Traceback" not in said, said
    unharmed = [("folder", "keys list"), ("no table", "feedback")]  # no file, so no keys; a table that is not read
    assert code == 2 or (kind, verb) in unharmed
    assert (data / "pepper").read_bytes() == (whole / "pepper").read_bytes()


@pytest.mark.parametrize("verb", ["keys list", "keys make", "feedback"])
def test_a_flipped_byte_is_read_or_is_one_line(whole: Path, tmp_path: Path, run, verb: str) -> None:
    """Bytes anywhere in the file, at random places; the seed is fixed."""
    chance, content = random.Random(7), (whole / "tutelage.db").read_bytes()
    for number in range(25):
        data = tmp_path / str(number)
        shutil.copytree(whole, data)
        flipped = bytearray(content)
        for _ in range(40):
            flipped[chance.randrange(len(flipped))] = chance.randrange(256)
        (data / "tutelage.db").write_bytes(flipped)
        code, said = run(*VERBS[verb], "--data", str(data))
        assert (code, said.count("\n") <= 2) in ((0, True), (2, True)) and "Traceback" not in said, (number, said)


URLS = (
    "postgresql://user:secret@127.0.0.1:port/name",
    "postgresql://user:secret@127.0.0.1:9/name",
    "postgresql://user:secret@[::1/name",
    "postgresql://user:secret@127.0.0.1:99999999/name",
    "postgresql://user:secret@127.0.0.1:9/name?sslmode=nonsense",
    "postgresql+nonsense://user:secret@127.0.0.1:9/name",
    "sqlite+nonsense:///TMP/a.db",
    "mysql://user:secret@127.0.0.1/name",
    "sqlite://",
    "sqlite:///TMP",
    "sqlite:////dev/null/a.db",
    "sqlite:///TMP/" + "a" * 5000 + ".db",
    "nonsense",
    "://",
)


@pytest.mark.parametrize("verb", ["keys list", "keys make", "feedback"])
@pytest.mark.parametrize("url", URLS, ids=lambda url: url[:50])
def test_a_url_that_leads_nowhere_is_one_line_without_its_password(tmp_path: Path, run, verb: str, url: str) -> None:
    words = ("--data", str(tmp_path / "data"), "--database", url.replace("TMP", str(tmp_path)))
    code, said = run(*VERBS[verb], *words)
    assert said.count("\n") <= 1 and "Traceback" not in said and "secret" not in said, said
    assert code == 2 or (verb != "feedback" and "sqlite" in url)


@pytest.mark.parametrize("verb", VERBS)
def test_paths_that_no_disk_holds(tmp_path: Path, run, verb: str) -> None:
    for path in (tmp_path / ("a" * 300), tmp_path / ("a/" * 3000), Path("/dev/null/data"), Path("/proc/data")):
        code, said = run(*VERBS[verb], "--data", str(path))
        assert said.count("\n") <= 1 and len(said) < 700 and "Traceback" not in said, said
        assert code == 2 or verb == "keys list"


def test_a_running_server_says_that_its_database_is_damaged(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "data")
    file = tmp_path / "data" / "tutelage.db"
    damage("zeros", file)
    database = Database(sqlite_url(file))
    with pytest.raises(StorageError) as refused, database.write() as session:
        session.connection().exec_driver_sql("INSERT INTO settings VALUES ('a', '{}', 0)")
    assert refused.value.damaged and not refused.value.full
