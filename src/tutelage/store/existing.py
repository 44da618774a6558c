"""Open the database of a server that has run before. Nothing is created for one that has not.

data folder or database URL  ->  Database, migrated to this version
"""

import re
from contextlib import closing
from pathlib import Path

from sqlalchemy import inspect

from tutelage.errors import InputError
from tutelage.store.database import Database, reachable, sqlite_url, without_password
from tutelage.store.migrate import current, upgrade
from tutelage.store.tables import Base

FILE = "tutelage.db"


def is_url(text: str) -> bool:
    """Whether a text is a URL, not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def find_existing(data: Path, url: str = "") -> Database | None:
    """The database in a data folder, or at a URL if that is given; None if it does not exist or has no tables.

    Raises InputError if it cannot be opened, or is of a newer version.
    """
    url = url or sqlite_url(data / FILE)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).is_file():
        return None
    database = Database(url)
    reachable(database)
    if current(database) is None:
        with closing(database):
            require_no_tables(database)
        return None
    upgrade(database)
    return database


def require_no_tables(database: Database) -> None:
    """Raise InputError if a database without a version has our tables."""
    with database.engine.connect() as connection:
        found = set(inspect(connection).get_table_names()) & Base.metadata.tables.keys()
    if found:
        where, names = database.url.render_as_string(), ", ".join(sorted(found)[:3])
        raise InputError(f"{where}: damaged, it has tables ({names}) but no version; copy it back from a backup")


def open_existing(data: str, url: str = "") -> Database:
    """Like `find_existing`, but raises InputError if there is none. data: a folder, or a URL in its place."""
    url = url or (data if is_url(data) else "")
    database = find_existing(Path(data), url)
    if database is None:
        if url:
            raise InputError(f"{without_password(url)}: holds no tables of tutelage; give the URL of tutelage serve")
        raise InputError(
            f"{data}: contains no {FILE}; give the data folder of tutelage serve, or the URL of its database"
        )
    return database
