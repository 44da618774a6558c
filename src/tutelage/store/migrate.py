"""Create a database's tables, or migrate them to this version.

    upgrade(database)  ->  tables created or migrated; an older SQLite file is copied first

`migrations/versions/` holds one linear history. A database with tables of a newer version is refused.
"""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from tutelage.errors import InputError
from tutelage.store.database import Database, reachable
from tutelage.store.private import FILE, owner_only, tighten
from tutelage.store.tables import Base

SETTING_UP = int.from_bytes(b"tutelage")  # key of the PostgreSQL advisory lock


def configuration() -> Config:
    """Alembic's settings, without an alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def head() -> str:
    """The revision that this version of the code needs."""
    revision = ScriptDirectory.from_config(configuration()).get_current_head()
    assert revision is not None
    return revision


def current(database: Database) -> str | None:
    """The revision a database is at; None when it is empty."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def setting_up(database: Database) -> Iterator[None]:
    """Only one process at a time creates tables and first rows; others that start at the same moment wait.

    Raises InputError for a database that cannot be opened.
    """
    with ExitStack() as stack:
        if database.is_sqlite:
            stack.enter_context(locked(database.folder / "setting-up.lock"))
        reachable(database)
        if not database.is_sqlite:
            connection = stack.enter_context(database.engine.connect())
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": SETTING_UP})
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """An exclusive lock on a file, until the block ends or the process dies.

    Raises InputError if the file cannot be opened.
    """
    try:
        file = open(path, "a", opener=owner_only)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; choose a folder that the server can write to") from None
    with file:
        tighten(path, FILE)
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def upgrade(database: Database) -> None:
    """Create or migrate the tables. Raises InputError for a database of a newer version."""
    with setting_up(database), database.writer_lock():
        at, scripts = current(database), ScriptDirectory.from_config(configuration())
        if at == head():
            return
        if at is not None:
            if at not in {script.revision for script in scripts.walk_revisions()}:
                raise InputError(
                    f"{database.url.render_as_string()}: its tables are from a newer version ({at}, this version has "
                    f"{head()}); update tutelage"
                )
            back_up(database, at)
        config = configuration()
        with database.engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def back_up(database: Database, revision: str) -> None:
    """Copy a SQLite file before its migration. PostgreSQL has pg_dump, and rolls back a migration that fails."""
    if database.is_sqlite:
        copy = f"{database.url.database}.before-{head()}-from-{revision}"
        open(copy, "a", opener=owner_only).close()  # SQLite fills an empty file and keeps its mode
        with database.engine.connect() as connection:  # the driver's own cursor: VACUUM runs in no transaction
            connection.connection.cursor().execute("VACUUM INTO ?", (copy,))


def differences(database: Database) -> list:
    """What `tables.py` defines and the migrations lack; empty unless a migration was forgotten."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, Base.metadata)
