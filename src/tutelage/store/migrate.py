"""Create a database's tables, or migrate them to this version.

    upgrade(database)  ->  tables created or migrated; an older SQLite file is copied first

`migrations/versions/` holds one linear history. A database with tables of a newer version is refused.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from tutelage.errors import InputError
from tutelage.store.database import Database, reachable
from tutelage.store.failures import StorageError, failures_named
from tutelage.store.private import FILE, owner_only, tighten
from tutelage.store.tables import Base
from tutelage.store.writer_lock import lock

PATIENCE = 60.0  # seconds for which another process may set up the database
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
    """The revision a database is at; None when it is empty. Raises InputError for a database that is damaged."""
    with failures_named(), database.engine.connect() as connection:
        try:
            return MigrationContext.configure(connection).get_current_revision()
        except CommandError as error:
            raise unusable(database, error) from None


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
            connection = stack.enter_context(database.engine.connect().execution_options(patience=PATIENCE))
            with failures_named():
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": SETTING_UP})
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """An exclusive lock on a file, until the block ends or the process dies.

    Raises InputError if the file cannot be opened, or if another process holds it for PATIENCE.
    """
    try:
        file = open(path, "a", opener=owner_only)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; choose a folder that the server can write to") from None
    with file:
        tighten(path, FILE)
        try:
            lock(file.fileno(), time.monotonic() + PATIENCE)
        except StorageError:
            held = f"another process has held it for {PATIENCE:g} seconds"
            raise InputError(f"{path}: {held}; end the other server or command on this data, and try again") from None
        yield


def upgrade(database: Database) -> None:
    """Create or migrate the tables. Raises InputError for a database of a newer version, or one that is damaged."""
    with setting_up(database), database.writer_lock():
        try:
            _upgrade(database)
        except (SQLAlchemyError, CommandError) as error:
            raise unusable(database, error) from None


def _upgrade(database: Database) -> None:
    with failures_named():
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


def unusable(database: Database, error: Exception) -> InputError:
    """The error as one line."""
    where, reason = database.url.render_as_string(), " ".join(str(getattr(error, "orig", error)).split())
    return InputError(f"{where}: its tables cannot be used ({reason}); copy it back from a backup")


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
