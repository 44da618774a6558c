"""The server's database: a SQLite file, or PostgreSQL by its URL. Callers need not know which.

    Database(url)  ->  with database.read() as session: ...   with database.write() as session: ...

SQLite's files are private to their owner. SQLite runs with a write-ahead log, forces every commit to the disk and
enforces foreign keys. A write transaction first locks a file beside the database, then sends BEGIN IMMEDIATE. So
writers queue fairly and none fails with "database is locked". Connections for reading cannot write. A full or failing
disk raises StorageError and leaves nothing of the transaction behind.

Checkpoints run under the same lock, never during a commit: SQLite before 3.51.3 can lose pages when the two coincide
(its WAL-reset bug). The driver is pysqlite3, which brings its own SQLite, or Python's sqlite3 if there is no wheel.
"""

import errno
import fcntl
import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from sqlalchemy import Engine, Select, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from tutelage.errors import InputError
from tutelage.store.private import owner_only, private_database

try:
    import pysqlite3.dbapi2 as driver
except ImportError:  # no wheel for this platform
    driver = sqlite3

T = TypeVar("T")
log = logging.getLogger(__name__)
# Below this much free space nothing new is stored: the rest serves finishing, deleting and signing in.
LEAST_FREE_BYTES = 500_000_000
FULL = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "53100", "58030")  # the last two are PostgreSQL's
GONE = ("08", "57P")  # PostgreSQL error classes: no connection; shut down
COMMITS_PER_CHECKPOINT = 500  # a chat's commit adds about 10 kB to the log, so 5 MB (SQLite's default: 4 MB)


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{file.resolve()}"


class StorageError(InputError):
    """A transaction failed and nothing of it was stored.

    `full`: the disk is full or fails. Otherwise the database cannot be reached.
    """

    def __init__(self, reason: str, *, full: bool):
        super().__init__(reason)
        self.full = full


class Database:
    """Sessions on one database. Threads may share it; processes may share the database, thanks to the file lock."""

    def __init__(self, url: str):
        try:
            self.url = make_url(url)
        except ArgumentError:
            example = "postgresql://user@host/name or sqlite:///file"
            raise InputError(f"{url}: not a database URL; give one such as {example}") from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.on_write_wait: Callable[[float], None] = lambda seconds: None
        self._commits = 0
        self._lock_file: Path | None = None
        self._writer: Engine
        self._reader: Engine
        if self.is_sqlite:
            self._open_sqlite(Path(self.url.database or ""))
        elif self.url.get_backend_name() == "postgresql":
            self._open_postgresql()
        else:
            raise InputError(f"{url}: unknown kind of database; give a sqlite or postgresql URL")

    def _open_sqlite(self, file: Path) -> None:
        if not file.name or file.name == ":memory:":
            raise InputError(f"{self.url}: names no file; give one such as sqlite:///file")
        private_database(file)
        self._lock_file = file.with_name(file.name + ".lock")
        self._writer = _sqlite_engine(self.url, driver, writes=True)
        self._reader = _sqlite_engine(self.url, driver, writes=False)

    def _open_postgresql(self) -> None:
        url = self.url.set(drivername="postgresql+psycopg")
        self._writer = create_engine(
            url, pool_pre_ping=True, pool_size=20, hide_parameters=True, json_serializer=_json_without_nul
        )
        event.listen(self._writer, "connect", _replace_nul_in_text)
        self._reader = self._writer.execution_options(postgresql_readonly=True)

    @property
    def engine(self) -> Engine:
        """The engine with write access, for migrations."""
        return self._writer

    @property
    def folder(self) -> Path:
        """The folder of a SQLite file."""
        return Path(self.url.database or "").parent

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read-only session. Loaded objects stay usable after it closes. Raises StorageError."""
        with failures_named(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A read-only session that sees the database as it is now, whatever others write meanwhile."""
        with self.read() as session:
            if not self.is_sqlite:  # SQLite's readers always see one state
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: committed at the end of the block, rolled back on an exception. Raises StorageError.

        Read rows that you will change with `with_for_update`: this locks them in PostgreSQL, where several writers run
        at once. SQLite has one writer at a time and ignores it.
        """
        writer = Session(self._writer, expire_on_commit=False)
        with self.writer_lock(), writer as session, session.begin():
            yield session

    def check_room(self) -> None:
        """Raise StorageError if the disk is nearly full. Call it before starting work that will be stored."""
        if self.nearly_full:
            raise StorageError(f"the disk is nearly full: less than {LEAST_FREE_BYTES} bytes are free", full=True)

    @property
    def nearly_full(self) -> bool:
        """Whether a SQLite file has less than LEAST_FREE_BYTES left to grow. Always False for PostgreSQL."""
        free = self.free_bytes
        return free is not None and free < LEAST_FREE_BYTES

    @property
    def free_bytes(self) -> int | None:
        """Free disk space for a SQLite file, in bytes; None for PostgreSQL."""
        return shutil.disk_usage(self.folder).free if self.is_sqlite else None

    @contextmanager
    def writer_lock(self) -> Iterator[None]:
        """Admit one writer at a time, in order of arrival. PostgreSQL needs no lock. Raises StorageError."""
        started = time.monotonic()
        with failures_named(), ExitStack() as stack:
            if self._lock_file:
                file = stack.enter_context(open(self._lock_file, "a", opener=owner_only))
                fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by kill -9
            self.on_write_wait(time.monotonic() - started)
            yield
            self._commits += 1
            if self.is_sqlite and self._commits % COMMITS_PER_CHECKPOINT == 0:
                self._checkpoint("PASSIVE")

    def _checkpoint(self, how: str) -> None:
        """Copy the write-ahead log into the database file. A failure loses nothing: the next checkpoint may succeed."""
        try:
            with self._writer.connect() as connection:
                connection.connection.cursor().execute(f"PRAGMA wal_checkpoint({how})")
        except (OperationalError, driver.OperationalError) as error:
            log.warning("checkpoint of the database failed; it will be tried again: %s", error)

    def ping(self) -> None:
        """Write a row and roll back, to check that the database accepts writes. Raises the database's error if not."""
        with self.writer_lock(), Session(self._writer) as session:
            session.execute(text("INSERT INTO settings (key, value, updated_ms) VALUES ('ping', '{}', 0)"))
            session.rollback()

    def close(self) -> None:
        """Copy the write-ahead log into the database file and close all connections."""
        if self.is_sqlite:
            with self.writer_lock():
                self._checkpoint("TRUNCATE")
        self._writer.dispose()
        self._reader.dispose()

    def described(self) -> str:
        """The database and its version, to print."""
        if self.is_sqlite:
            return f"SQLite {driver.sqlite_version}, {self.url.database}"
        with self.read() as session:
            version = session.execute(text("SHOW server_version")).scalar_one()
        return f"PostgreSQL {version}, {self.url.render_as_string(hide_password=True)}"


def without_nul(value: Any) -> Any:
    """Text or JSON with every NUL replaced by U+FFFD: PostgreSQL stores no NUL."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [without_nul(item) for item in value]
    if isinstance(value, dict):
        return {without_nul(name): without_nul(item) for name, item in value.items()}
    return value


def _json_without_nul(value: Any) -> str:
    return json.dumps(without_nul(value))


def _replace_nul_in_text(connection: Any, record: Any) -> None:
    """Pass all text sent to PostgreSQL, stored or searched for, through `without_nul`."""
    from psycopg.types.string import StrDumperUnknown

    class Dumper(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(without_nul(obj))

    connection.adapters.register_dumper(str, Dumper)


def _sqlite_engine(url: Any, module: ModuleType, *, writes: bool) -> Engine:
    engine = create_engine(
        url, module=module, hide_parameters=True, connect_args={"timeout": 5.0, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves; the driver must not
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "wal_autocheckpoint=0"):
            cursor.execute(f"PRAGMA {pragma}")
        if not writes:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def failures_named() -> Iterator[None]:
    """Turn the errors of a full or failing disk, and of an unreachable database, into StorageError."""
    try:
        yield
    except (OperationalError, OSError) as error:
        cause = error.orig if isinstance(error, OperationalError) else error
        name = str(getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or "")
        full = name.startswith(FULL) or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
        never_reached = hasattr(cause, "sqlstate") and not name
        if full or name.startswith(GONE) or never_reached:
            raise StorageError(f"the database failed: {str(cause).strip()}", full=full) from error
        raise


def find_or_add(session: Session, query: Select[T], row: T) -> T:
    """The row that the query finds; if there is none, add `row`.

    If another transaction adds the same row at the same moment, theirs is returned.
    """
    existing = session.scalar(query)
    if existing is None:
        with suppress(IntegrityError), session.begin_nested():
            session.add(row)
        existing = session.scalars(query).one()
    return existing


def reachable(database: Database) -> None:
    """Raise InputError, in one line, if the database cannot be opened."""
    try:
        with database.read() as session:
            session.execute(text("SELECT 1"))
    except (DatabaseError, StorageError) as error:
        where = database.url.render_as_string(hide_password=True)
        reason = str(error.orig if isinstance(error, DatabaseError) else error).strip()
        raise InputError(f"{where}: {reason}; check that it runs and that the URL is right") from None
