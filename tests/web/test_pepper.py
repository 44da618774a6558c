"""The secret that keys are hashed with: it is never replaced while keys need it."""

from pathlib import Path

import pytest

from tutelage.errors import InputError
from tutelage.web import people
from tutelage.web.keys import open_store, revoke


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with one key."""
    database, ring = open_store(tmp_path / "data", "")
    ring.make(people.owner(database).id, "laptop")
    database.close()
    return tmp_path / "data"


def reopened(data: Path) -> None:
    open_store(data, "")[0].close()


@pytest.mark.parametrize(
    "content, why",
    [("", "damaged"), ("\n", "damaged"), ("ab" * 16, "damaged"), ("zz" * 32, "damaged"), ("cd" * 32, "not the secret")],
)
def test_another_pepper_is_refused_and_stays(data: Path, content: str, why: str) -> None:
    pepper = data / "pepper"
    kept = pepper.read_text()
    pepper.write_text(content)
    with pytest.raises(InputError, match=f"pepper: {why}[^\n]*from a backup[^\n]*$"):
        reopened(data)
    assert pepper.read_text() == content
    pepper.write_text(kept)
    reopened(data)


def test_a_missing_pepper_is_said_before_it_is_replaced(data: Path) -> None:
    (data / "pepper").unlink()
    with pytest.raises(InputError, match="pepper: missing, and the 1 API keys of the database"):
        reopened(data)
    assert not (data / "pepper").exists()


@pytest.mark.parametrize("missing", [True, False])
def test_without_keys_a_new_pepper_does(data: Path, missing: bool) -> None:
    (data / "pepper").unlink() if missing else (data / "pepper").write_text("cd" * 32)
    from tutelage.store.existing import open_existing
    from tutelage.web.key_command import all_keys

    database = open_existing(str(data))
    assert revoke(database, all_keys(database)[0].id)
    database.close()
    database, ring = open_store(data, "")
    secret = ring.make(people.owner(database).id, "new")[1]
    database.close()
    database, ring = open_store(data, "")
    assert ring.find(secret)
    database.close()


def test_a_pepper_from_before_it_was_marked_is_taken(data: Path) -> None:
    from tutelage.store.tables import Setting

    database, _ = open_store(data, "")
    with database.write() as session:
        session.delete(session.get_one(Setting, "pepper"))
    database.close()
    reopened(data)
    (data / "pepper").write_text("cd" * 32)
    with pytest.raises(InputError, match="not the secret"):
        reopened(data)
