"""Servers that start at the same moment on one empty database: one sets it up and the others wait."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from tutelage.store import migrate
from tutelage.store.database import Database, sqlite_url
from tutelage.store.tables import ApiKey, User
from tutelage.web.keys import KeyRing
from tutelage.web.pepper import read_pepper

STARTER = """
import json, sys
from pathlib import Path
from tutelage.server.serve import welcome
from tutelage.web.keys import open_store
print("ready", flush=True)
for line in sys.stdin:
    data, url = json.loads(line)
    database, keys = open_store(Path(data), url)
    print(json.dumps(welcome(database, keys)), flush=True)
    database.close()
"""


@pytest.fixture
def starters():
    """Three processes that have finished their imports."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started = [subprocess.Popen([sys.executable, "-c", STARTER], **pipes) for _ in range(3)]
    assert [process.stdout.readline() for process in started] == ["ready\n"] * 3
    yield started
    for process in started:
        process.communicate(timeout=20)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_servers_that_start_together_set_up_once(kind: str, starters, request, tmp_path: Path) -> None:
    for number in range(5):
        data = tmp_path / str(number)
        url = "" if kind == "sqlite" else request.getfixturevalue("postgresql").new_database()
        for process in starters:
            process.stdin.write(json.dumps([str(data), url]) + "\n")
        for process in starters:
            process.stdin.flush()
        told = "\n".join(line for process in starters for line in json.loads(process.stdout.readline()))
        database = Database(url or sqlite_url(data / "tutelage.db"))
        assert migrate.differences(database) == []
        with database.read() as session:
            assert len(session.scalars(select(User)).all()) == len(session.scalars(select(ApiKey)).all()) == 1
        (secret,) = re.findall(r"sk-[\w-]+", told)
        assert KeyRing(database, read_pepper(data)).find(secret)
        database.close()
