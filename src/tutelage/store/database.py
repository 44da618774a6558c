"""The server's database: a SQLite file, or PostgreSQL by its URL. Callers need not know which.

    Database(url)  ->  with database.read() as session: ...   with database.write() as session: ...

SQLite's files are private to their owner. SQLite runs with a write-ahead log, forces every commit to the disk and
enforces foreign keys. A write transaction first locks a file beside the database, then sends BEGIN IMMEDIATE. So
writers queue fairly and none fails with "database is locked". Connections for reading cannot write. A full or failing
disk raises StorageError and leaves nothing of the transaction behind.

Checkpoints run under the same lock, never during a commit: SQLite before 3.51.3 can lose pages when the two coincide
(its WAL-reset bug). The driver is pysqlite3, which brings its own SQLite, or Python's sqlite3 if there is no wheel.
"""

import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from sqlalchemy import Engine, Select, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from tutelage.errors import InputError
from tutelage.store.failures import StorageError, driver, failures_named
from tutelage.store.nul import json_without_nul, replace_nul_in_text
from tutelage.store.private import private_database
from tutelage.store.writer_lock import WriterLock

__all__ = ["Database", "StorageError", "failures_named", "find_or_add", "reachable", "sqlite_url", "without_password"]

T = TypeVar("T")
log = logging.getLogger(__name__)
# Below this much free space nothing new is stored: the rest serves finishing, deleting and signing in.
LEAST_FREE_BYTES = 500_000_000
PATIENCE = 4.0  # seconds that a write waits for the writer before it, and again for others that lock the database
CONNECT_SECONDS = 5
READ_PATIENCE = 1.0  # SQLite's readers wait for nobody but whoever locks the whole file
COMMITS_PER_CHECKPOINT = 500  # a chat's commit adds about 10 kB to the log, so 5 MB (SQLite's default: 4 MB)


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{file.resolve()}"


def without_password(url: str) -> str:
    """A database URL as it may be shown and stored."""
    return re.sub(r"(?<=://)([^/@]*?):[^/@]*@", r"\1:***@", url)


class Database:
    """Sessions on one database. Threads may share it; processes may share the database, thanks to the file lock."""

    def __init__(self, url: str):
        try:
            self.url = make_url(url)
        except (ArgumentError, ValueError):  # the latter for a port that is not a number
            example = "postgresql://user@host/name or sqlite:///file"
            raise InputError(f"{without_password(url)}: not a database URL; give one such as {example}") from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.on_write_wait: Callable[[float], None] = lambda seconds: None
        self._commits = 0
        self._lock: WriterLock | None = None
        self._writer: Engine
        self._reader: Engine
        if self.is_sqlite:
            self.url = self.url.set(drivername="sqlite")
            self._open_sqlite(Path(self.url.database or ""))
        elif self.url.get_backend_name() == "postgresql":
            self._open_postgresql()
        else:
            shown = without_password(url)
            raise InputError(f"{shown}: unknown kind of database; give a sqlite or postgresql URL")

    def _open_sqlite(self, file: Path) -> None:
        if not file.name or file.name == ":memory:":
            raise InputError(f"{self.url}: names no file; give one such as sqlite:///file")
        private_database(file)
        self._lock = WriterLock(file.with_name(file.name + ".lock"))
        self._writer = _sqlite_engine(self.url, driver, writes=True)
        self._reader = _sqlite_engine(self.url, driver, writes=False)

    def _open_postgresql(self) -> None:
        try:
            self._writer = create_engine(
                self.url.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,
                pool_size=20,
                pool_timeout=PATIENCE,
                connect_args={} if "connect_timeout" in self.url.query else {"connect_timeout": CONNECT_SECONDS},
                hide_parameters=True,
                json_serializer=json_without_nul,
            )
        except ImportError:
            raise InputError("a PostgreSQL database needs psycopg; pip install 'tutelage[postgres]'") from None
        event.listen(self._writer, "connect", replace_nul_in_text)
        event.listen(self._writer, "begin", _wait_for_locks)
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
    def write(self, patience: float = PATIENCE) -> Iterator[Session]:
        """A transaction: committed at the end of the block, rolled back on an exception.

        Raises StorageError, also if others lock the database for longer than `patience` seconds.

        Read rows that you will change with `with_for_update`: this locks them in PostgreSQL, where several writers run
        at once. SQLite has one writer at a time and ignores it.
        """
        writer = Session(self._writer, expire_on_commit=False)
        with self.writer_lock(patience), writer as session, session.begin():
            session.connection(execution_options={"patience": patience})
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
    def writer_lock(self, patience: float = PATIENCE) -> Iterator[None]:
        """Admit one writer at a time, in order of arrival. PostgreSQL needs no lock. Raises StorageError."""
        started = time.monotonic()
        with failures_named(), ExitStack() as stack:
            if self._lock:
                stack.enter_context(self._lock.held(patience))
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
        except (DBAPIError, driver.Error) as error:
            log.warning("checkpoint of the database failed; it will be tried again: %s", error)

    def ping(self) -> None:
        """Write a row and roll back, to check that the database accepts writes. Raises the database's error if not."""
        with self.writer_lock(), Session(self._writer) as session:
            session.execute(text("INSERT INTO settings (key, value, updated_ms) VALUES ('ping', '{}', 0)"))
            session.rollback()

    def close(self, patience: float = PATIENCE) -> None:
        """Copy the write-ahead log into the database file and close all connections.

        The log stays, and loses nothing, if another process holds the lock or the disk fails.
        """
        if self.is_sqlite:
            with suppress(StorageError), self.writer_lock(patience):
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


def _sqlite_engine(url: Any, module: ModuleType, *, writes: bool) -> Engine:
    engine = create_engine(
        url, module=module, hide_parameters=True, connect_args={"timeout": READ_PATIENCE, "check_same_thread": False}
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
        if writes:
            patience = connection.get_execution_options().get("patience", PATIENCE)
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * patience)}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _wait_for_locks(connection: Any) -> None:
    """Let a transaction wait only so long for each lock that others hold."""
    patience = connection.get_execution_options().get("patience", PATIENCE)
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {max(1, round(1000 * patience))}")


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
    except (DBAPIError, StorageError, ValueError) as error:  # the last: the driver refuses a part of the URL
        where = database.url.render_as_string(hide_password=True)
        reason = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
        raise InputError(f"{where}: {reason}; check that it runs and that the URL is right") from None
