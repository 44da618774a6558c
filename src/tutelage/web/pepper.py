"""The server's secret that API keys are hashed with, in a file beside the database.

    open_pepper(folder, database)  ->  32 bytes

The database holds a keyed hash of a fixed text, so that a file of another server is recognised. Without the right file
no existing key works. So it is never replaced while there are keys that need it.
"""

import hashlib
import hmac
import secrets
from pathlib import Path

from sqlalchemy import ColumnElement, func, or_, select

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.store.database import Database
from tutelage.store.ids import now_ms
from tutelage.store.private import FILE, tighten
from tutelage.store.tables import ApiKey, Setting

BYTES = 32
SETTING = "pepper"  # the row that tells which file belongs to the database
MOVE = "copy it back from a backup, or revoke all keys (tutelage keys revoke) to begin with a new one"


def open_pepper(folder: Path, database: Database) -> bytes:
    """The secret, created if no key needs an older one.

    Raises InputError if the file is missing, damaged or another server's.
    """
    path, needed = folder / "pepper", keys_in_use(database)
    if not path.exists() and needed:
        raise InputError(f"{path}: missing, and the {needed} API keys of the database work only with it; {MOVE}")
    pepper = read_pepper(folder)
    known, mark = known_mark(database), mark_of(pepper)
    if known not in (None, mark) and needed:
        raise InputError(f"{path}: not the secret that the {needed} API keys of the database were made with; {MOVE}")
    if known != mark:
        with database.write() as session:
            session.merge(Setting(key=SETTING, value={"mark": mark}))
    return pepper


def read_pepper(folder: Path) -> bytes:
    """The secret in this folder, created on first use. Raises InputError if the file does not hold one."""
    path = folder / "pepper"
    if not path.exists():
        with atomic_write(path, private=True) as file:
            file.write(secrets.token_hex(BYTES))
    tighten(path, FILE)
    try:
        pepper = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError:
        pepper = b""
    if len(pepper) != BYTES:
        raise InputError(
            f"{path}: damaged, it does not hold {2 * BYTES} hexadecimal digits; copy it back from a backup, or revoke "
            "all keys (tutelage keys revoke) and remove the file"
        )
    return pepper


def keys_in_use(database: Database) -> int:
    """The number of keys that were not revoked and have not expired."""
    with database.read() as session:
        return session.scalars(select(func.count(ApiKey.id)).where(*in_use())).one()


def in_use() -> tuple[ColumnElement[bool], ...]:
    """SQL conditions for keys that work."""
    return ApiKey.revoked_ms.is_(None), or_(ApiKey.expires_ms.is_(None), ApiKey.expires_ms > now_ms())


def known_mark(database: Database) -> str | None:
    """The mark of the secret that belongs to the database; None if it was last used by an older version."""
    with database.read() as session:
        row = session.get(Setting, SETTING)
    return str(row.value.get("mark")) if row else None


def mark_of(pepper: bytes) -> str:
    """Tells secrets apart and reveals nothing about them."""
    return hmac.new(pepper, b"tutelage pepper", hashlib.sha256).hexdigest()
