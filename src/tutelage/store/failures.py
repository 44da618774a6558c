"""The failures of a database that are nobody's bug, by the names that SQLite and PostgreSQL give them.

an exception of the driver  ->  StorageError: the disk is full, the file is damaged, or the database does not answer
"""

import errno
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DatabaseError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tutelage.errors import InputError

try:
    import pysqlite3.dbapi2 as driver_module
except ImportError:  # no wheel for this platform
    driver_module = sqlite3
driver = driver_module  # of SQLite databases

__all__ = ["StorageError", "driver", "failures_named"]

# Names that begin with two digits are PostgreSQL's.
FULL = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "53100", "58030")
DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "XX001", "XX002", "42P01", "42703")  # the last two: as MISSING
MISSING = re.compile("no such (table|column)")  # SQLite's messages, which have no name either
# Locked; no connection; shut down; a lock was not free in time; cancelled.
GONE = ("SQLITE_BUSY", "SQLITE_LOCKED", "08", "57P", "55P03", "57014")
NOT_TEXT = "Could not decode to UTF-8"  # SQLite's message about a damaged text, which has no name
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class StorageError(InputError):
    """A transaction failed and nothing of it was stored.

    `full`: the disk is full or fails. `damaged`: the file is. Otherwise the database does not answer, and may later.
    """

    def __init__(self, reason: str, *, full: bool, damaged: bool = False):
        super().__init__(reason)
        self.full, self.damaged = full, damaged


@contextmanager
def failures_named() -> Iterator[None]:
    """Turn the failures of this module's docstring into StorageError. All other errors pass."""
    try:
        yield
    except (DatabaseError, PoolTimeout, driver.DatabaseError, OSError) as error:
        cause = error.orig if isinstance(error, DatabaseError) else error
        if named := _named(cause):
            raise named from error
        raise


def _named(cause: BaseException | None) -> StorageError | None:
    name = str(getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or "")
    reason = " ".join(str(cause).split()) or type(cause).__name__
    if name.startswith(DAMAGED) or NOT_TEXT in reason or MISSING.match(reason):
        message = f"the database is damaged: {reason}; copy it back from a backup"
        return StorageError(message, full=False, damaged=True)
    full = name.startswith(FULL) or (isinstance(cause, OSError) and cause.errno in DISK)
    never_reached = hasattr(cause, "sqlstate") and not name
    if full or name.startswith(GONE) or never_reached or isinstance(cause, PoolTimeout):
        return StorageError(f"the database failed: {reason}", full=full)
    return None
