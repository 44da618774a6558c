"""The database behind a server: SQLite in a file, or PostgreSQL by its URL; the code above does not see which.

    Database(url)  ->  with database.read() as session: ...   with database.write() as session: ...

SQLite: write-ahead log, every commit forced to the disk, foreign keys on. A write transaction first takes a lock on the
file beside the database, then BEGIN IMMEDIATE: writers queue fairly and none fails with "database is locked"; reading
connections cannot write. A disk that is full or fails is a StorageError, and leaves nothing of the transaction behind.
Checkpoints run under the same lock, never beside a commit: SQLite before 3.51.3 can lose
pages when the two meet (its WAL-reset bug). The driver is pysqlite3, which brings its own SQLite, where there is one.
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
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from tutelage.errors import InputError

try:
    import pysqlite3.dbapi2 as driver
except ImportError:  # no wheel for this platform
    driver = sqlite3

T = TypeVar("T")
log = logging.getLogger(__name__)
LEAST_FREE_BYTES = 500_000_000  # beneath, nothing is begun that grows: what remains is for ending, deleting, signing in
FULL = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "53100", "58030")  # and PostgreSQL's
GONE = ("08", "57P")  # PostgreSQL: no connection; it was shut down
COMMITS_PER_CHECKPOINT = 500  # a chat's commit is about 10 kB of log: 5 MB, SQLite's own default is 4 MB


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{file.resolve()}"


class StorageError(InputError):
    """Nothing of a transaction was stored. `full`: no room, or the disk fails; else the database does not answer."""

    def __init__(self, reason: str, *, full: bool):
        super().__init__(reason)
        self.full = full


class Database:
    """Sessions on one database. Safe to share between threads and, by its lock, between processes."""

    def __init__(self, url: str):
        try:
            self.url = make_url(url)
        except ArgumentError:
            raise InputError(f"{url}: no database URL; like postgresql://user@host/name or sqlite:///file") from None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.on_write_wait: Callable[[float], None] = lambda seconds: None
        self._commits = 0
        self._lock_file: Path | None = None
        self._writer: Engine
        self._reader: Engine
        if self.is_sqlite:
            self._open_sqlite(Path(self.url.database or ""))
        elif self.url.get_backend_name() == "postgresql":
            driver_url = self.url.set(drivername="postgresql+psycopg")
            self._writer = create_engine(
                driver_url, pool_pre_ping=True, pool_size=20, hide_parameters=True,
                json_serializer=lambda value: json.dumps(without_nul(value)),
            )  # fmt: skip
            event.listen(self._writer, "connect", _take_nul)
            self._reader = self._writer.execution_options(postgresql_readonly=True)
        else:
            raise InputError(f"{url}: only sqlite and postgresql are supported")

    def _open_sqlite(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock_file = file.with_name(file.name + ".lock")
        self._writer = _sqlite_engine(self.url, driver, writes=True)
        self._reader = _sqlite_engine(self.url, driver, writes=False)

    @property
    def engine(self) -> Engine:
        """The engine that may write; for migrations."""
        return self._writer

    @property
    def folder(self) -> Path:
        """Where a SQLite file lies."""
        return Path(self.url.database or "").parent

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads; what it loaded stays usable after it is closed. Raises StorageError."""
        with failures_named(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: committed when the block ends well, rolled back when it does not. Raises StorageError.

        What it reads to change, it reads `with_for_update`: that locks the row in PostgreSQL, where writers run side by
        side. SQLite, which has one writer at a time, does without.
        """
        writer = Session(self._writer, expire_on_commit=False)
        with self.writer_lock(), writer as session, session.begin():
            yield session

    def check_room(self) -> None:
        """Raises StorageError while the disk is nearly full: before something is begun that will be stored."""
        if self.nearly_full:
            raise StorageError(f"the database may not grow: fewer than {LEAST_FREE_BYTES} bytes are free", full=True)

    @property
    def nearly_full(self) -> bool:
        """Whether a SQLite file has little room left to grow. PostgreSQL looks after its own disk."""
        free = self.free_bytes
        return free is not None and free < LEAST_FREE_BYTES

    @property
    def free_bytes(self) -> int | None:
        """What a SQLite file may still grow by; None for PostgreSQL."""
        return shutil.disk_usage(self.folder).free if self.is_sqlite else None

    @contextmanager
    def writer_lock(self) -> Iterator[None]:
        """One writer at a time, in the order they came; PostgreSQL does without. Raises StorageError."""
        started = time.monotonic()
        with failures_named(), ExitStack() as held:
            if self._lock_file:
                file = held.enter_context(open(self._lock_file, "a"))
                fcntl.flock(file, fcntl.LOCK_EX)  # given up when the file is closed, also by kill -9
            self.on_write_wait(time.monotonic() - started)
            yield
            self._commits += 1
            if self.is_sqlite and self._commits % COMMITS_PER_CHECKPOINT == 0:
                self._checkpoint("PASSIVE")

    def _checkpoint(self, how: str) -> None:
        """Bring the log into the file. Where that fails the log is as good, and the next one may succeed."""
        try:
            with self._writer.connect() as connection:
                connection.connection.cursor().execute(f"PRAGMA wal_checkpoint({how})")
        except (OperationalError, driver.OperationalError) as error:
            log.warning("the log of the database could not be brought into its file: %s", error)

    def ping(self) -> None:
        """Write and undo, to see that the database takes writes. Raises what it says if it does not."""
        with self.writer_lock(), Session(self._writer) as session:
            session.execute(text("INSERT INTO settings (key, value, updated_ms) VALUES ('ping', '{}', 0)"))
            session.rollback()

    def close(self) -> None:
        """Bring the log into the database file and let go of it."""
        if self.is_sqlite:
            with self.writer_lock():
                self._checkpoint("TRUNCATE")
        self._writer.dispose()
        self._reader.dispose()

    def described(self) -> str:
        """For people: which database, which version."""
        if self.is_sqlite:
            return f"SQLite {driver.sqlite_version}, {self.url.database}"
        with self.read() as session:
            version = session.execute(text("SHOW server_version")).scalar_one()
        return f"PostgreSQL {version}, {self.url.render_as_string(hide_password=True)}"


def without_nul(value: Any) -> Any:
    """JSON or text that PostgreSQL holds: U+FFFD stands for the one character it does not take."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [without_nul(item) for item in value]
    if isinstance(value, dict):
        return {without_nul(name): without_nul(item) for name, item in value.items()}
    return value


def _take_nul(connection: Any, record: Any) -> None:
    """Whatever text is sent to PostgreSQL, to be kept or to be looked for, goes through `without_nul`."""
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
        connection.isolation_level = None  # transactions begin where we say so, not where the driver guesses
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
    """A disk that is full or fails, and a database that has gone, as StorageError."""
    try:
        yield
    except (OperationalError, OSError) as error:
        cause = error.orig if isinstance(error, OperationalError) else error
        name = str(getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or "")
        full = name.startswith(FULL) or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
        if full or name.startswith(GONE) or (hasattr(cause, "sqlstate") and not name):  # none: it was never reached
            raise StorageError(f"the database fails: {str(cause).strip()}", full=full) from error
        raise


def find_or_add(session: Session, query: Select[T], row: T) -> T:
    """The row that a query finds, or this one, added; the other's, if another transaction adds one at the same time."""
    found = session.scalar(query)
    if found is None:
        with suppress(IntegrityError), session.begin_nested():
            session.add(row)
        found = session.scalars(query).one()
    return found


def reachable(database: Database) -> None:
    """Raises InputError, in one line, for a database that cannot be opened."""
    try:
        with database.read() as session:
            session.execute(text("SELECT 1"))
    except (OperationalError, StorageError) as error:
        where = database.url.render_as_string(hide_password=True)
        said = str(error.orig if isinstance(error, OperationalError) else error).strip()
        raise InputError(f"{where}: {said}; check that it runs and the URL is right") from None
