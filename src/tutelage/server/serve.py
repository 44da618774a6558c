"""`tutelage serve`: an OpenAI-compatible API and a chat page on any run.

runs  ->  http://127.0.0.1:8000/v1 for the official clients, /chat for people
"""

from dataclasses import dataclass
from pathlib import Path

from tutelage.store import migrate
from tutelage.store.database import Database, sqlite_url
from tutelage.web.keys import KeyRing, read_pepper

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where the people's data lie."""

    data: Path = Path("tutelage-data")
    """Folder of the server's own files: the SQLite database and the secret that keys are hashed with."""
    database: str = ""
    """Another database by its URL: postgresql://user@host/name. Empty is SQLite in --data."""


def open_store(config: StoreConfig) -> tuple[Database, KeyRing]:
    """The database, its tables up to date, and the keys in it."""
    config.data.mkdir(parents=True, exist_ok=True)
    database = Database(config.database or sqlite_url(config.data / "tutelage.db"))
    migrate.upgrade(database)
    return database, KeyRing(database, read_pepper(config.data))
