"""`tutelage keys` on the command line, next to a server with the same database."""

import errno
import re
import shutil

import pytest
from sqlalchemy import Connection, Engine, event

from tutelage import cli
from tutelage.store.database import Database
from tutelage.store.migrate import current
from tutelage.web.keys import open_store
from tutelage.web.limits import Limits


@pytest.fixture
def keys(tmp_path, capsys: pytest.CaptureFixture[str]):
    """keys("list") -> (exit code, output)."""

    def run(*words: str) -> tuple[int, str]:
        code = 0
        try:
            cli.main(["keys", *words, "--data", str(tmp_path / "data")])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_made_listed_used_and_revoked(keys, tmp_path) -> None:
    _, made = keys("make", "--name", "laptop", "--scopes", "inference", "admin", "--days", "3", "--concurrent", "2")
    secret = re.findall(r"^(sk-[\w-]{43})   \(shown only now\)$", made, re.MULTILINE)[0]
    _, listed = keys("list")
    assert secret not in listed and secret[:9] in listed and "laptop  inference,admin  until 20" in listed
    database, ring = open_store(tmp_path / "data", "")
    found = ring.find(secret)
    assert (found.concurrent, found.scopes) == (2, ["inference", "admin"])
    database.close()
    assert keys("revoke", "laptop")[0] == 0
    assert "revoked" in keys("list")[1]
    database, ring = open_store(tmp_path / "data", "")
    assert ring.find(secret) is None
    database.close()


@pytest.mark.parametrize("database", [False, True])
def test_listing_creates_nothing(keys, tmp_path, database: bool) -> None:
    url = ("--database", f"sqlite:///{tmp_path}/elsewhere/t.db") if database else ()
    code, said = keys("list", *url)
    assert code == 0 and said.count("\n") == 1 and "no keys" in said and "no server has run" in said
    code, said = keys("revoke", "laptop", *url)
    assert code == 2 and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_listing_creates_no_table_in_postgresql(keys, tmp_path, postgresql) -> None:
    url = postgresql.new_database()
    assert keys("list", "--database", url)[0] == 0
    assert current(Database(url)) is None and list(tmp_path.iterdir()) == []
    keys("make", "--database", url)
    shutil.rmtree(tmp_path / "data")
    assert "key  inference  in use" in keys("list", "--database", url)[1]
    assert list(tmp_path.iterdir()) == []  # the pepper is not needed to list


def test_a_full_disk_is_one_line(keys) -> None:
    keys("make")

    @event.listens_for(Engine, "begin")
    def full(connection: Connection) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    try:
        code, said = keys("make")
    finally:
        event.remove(Engine, "begin", full)
    assert code == 2 and said.count("\n") == 1 and "No space left on device" in said


def test_mistakes_are_one_line(keys) -> None:
    keys("make", "--name", "twin")
    keys("make", "--name", "twin")
    for words in (
        ("revoke", "nobody"),
        ("revoke", "twin"),
        ("make", "--scopes", "king"),
        ("forge",),
        ("make", "--concurrent", "0"),
        ("make", "--days", "100001"),
        ("make", "--days", "1" + "0" * 400),
        ("make", "--requests-per-minute", str(2**63)),
        ("make", "--tokens-per-minute", str(2**63)),
        ("make", "--concurrent", "9" * 30),
        ("make", "--name", ""),
        ("make", "--name", "two\nlines"),
        ("make", "--name", "bytes \udcff"),
        ("make", "--name", "a" * 101),
    ):
        code, said = keys(*words)
        assert (code, said.count("\n")) == (2, 1) and len(said) < 300, (words, said)
    assert keys("list")[1].count("\n") == 2


def test_what_can_be_made_can_be_listed_and_used(keys, tmp_path) -> None:
    most = str(2**63 - 1)
    limits = ("--requests-per-minute", most, "--tokens-per-minute", most, "--concurrent", most, "--days", "100000")
    secret = re.findall(r"sk-[\w-]+", keys("make", *limits, "--name", "a" * 100)[1])[-1]
    assert "until 2" in keys("list")[1]
    database, ring = open_store(tmp_path / "data", "")
    found = ring.find(secret)
    limits_of = Limits()
    limits_of.request(found)
    with limits_of.generation(found, 10):
        assert limits_of.headers(found)["x-ratelimit-limit-requests"] == most
    database.close()


def test_a_key_is_revoked_without_the_pepper(keys, tmp_path) -> None:
    keys("make", "--name", "laptop")
    (tmp_path / "data" / "pepper").unlink()
    code, said = keys("make")
    assert code == 2 and said.count("\n") == 1 and "pepper: missing" in said
    assert keys("revoke", "laptop")[0] == 0 and not (tmp_path / "data" / "pepper").exists()
    assert keys("make")[0] == 0
