"""Keys of the API: made once, shown once, kept only as a keyed hash.

    secret = sk-...  ->  HMAC-SHA256(pepper, secret)  ->  the row in `api_keys`

A key has 256 random bits, so a fast hash is enough; the pepper lies in a file beside the database, so that a stolen
database alone says nothing. A key that was looked up is remembered for a second: that is how long a revoked one may
live.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select, update

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.store import migrate
from tutelage.store.database import Database, StorageError, sqlite_url
from tutelage.store.ids import new_id, now_ms
from tutelage.store.tables import ApiKey

SCOPES = ("inference", "admin")
REMEMBERED_SECONDS = 1.0
USED_EVERY_MS = 60_000  # how often `last_used_ms` is written


class KeyRing:
    """Makes keys and finds them again."""

    def __init__(self, database: Database, pepper: bytes):
        self._database = database
        self._pepper = pepper
        self._seen: dict[str, tuple[float, ApiKey | None]] = {}

    def make(
        self,
        user_id: str,
        name: str,
        *,
        scopes: Sequence[str] = ("inference",),
        requests_per_minute: int = 60_000,
        tokens_per_minute: int = 10_000_000,
        concurrent: int = 256,
        expires_ms: int | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key: its row, and the secret that nobody will see again."""
        if unknown := set(scopes) - set(SCOPES):
            raise InputError(f"{sorted(unknown)[0]!r}: no scope; a key may have {', '.join(SCOPES)}")
        secret = "sk-" + secrets.token_urlsafe(32)
        key = ApiKey(
            id=new_id("key_"), user_id=user_id, name=name,
            prefix=secret[:9], last4=secret[-4:], hash=self._hash(secret), scopes=list(scopes),
            requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute,
            concurrent=concurrent, expires_ms=expires_ms,
        )  # fmt: skip
        with self._database.write() as session:
            session.add(key)
        return key, secret

    def find(self, secret: str) -> ApiKey | None:
        """The key, unless there is none, or it was revoked or has expired."""
        digest = self._hash(secret)
        when, key = self._seen.get(digest, (0.0, None))
        if time.monotonic() - when > REMEMBERED_SECONDS:
            key = self._look_up(digest)
        if key is None or (key.expires_ms is not None and key.expires_ms <= now_ms()):
            return None
        return key

    def remembered(self, secret: str) -> bool:
        """Whether `find` answers without asking the database."""
        when, _ = self._seen.get(self._hash(secret), (0.0, None))
        return time.monotonic() - when <= REMEMBERED_SECONDS

    def revoke(self, key_id: str) -> bool:
        """Whether there was such a key to revoke."""
        with self._database.write() as session:
            key = session.get(ApiKey, key_id, with_for_update=True)
            if key is None or key.revoked_ms is not None:
                return False
            key.revoked_ms = now_ms()
        self._seen.clear()
        return True

    def _hash(self, secret: str) -> str:
        return hmac.new(self._pepper, secret.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def _look_up(self, digest: str) -> ApiKey | None:
        with self._database.read() as session:
            key = session.scalar(select(ApiKey).where(ApiKey.hash == digest, ApiKey.revoked_ms.is_(None)))
        if key is None:
            return None  # not remembered: guesses must not fill the memory
        if now_ms() - (key.last_used_ms or 0) > USED_EVERY_MS:
            # This column only: the key may have been revoked just now. A full disk keeps nobody from reading.
            with suppress(StorageError), self._database.write() as session:
                session.execute(update(ApiKey).where(ApiKey.id == key.id).values(last_used_ms=now_ms()))
        self._seen[digest] = (time.monotonic(), key)
        return key


def open_store(data: Path, url: str) -> tuple[Database, KeyRing]:
    """The database, its tables up to date, and the keys in it."""
    data.mkdir(parents=True, exist_ok=True)
    database = Database(url or sqlite_url(data / "tutelage.db"))
    migrate.upgrade(database)
    with migrate.setting_up(database):
        return database, KeyRing(database, read_pepper(data))


def read_pepper(folder: Path) -> bytes:
    """The server's secret, made on first use. Losing it makes every key worthless."""
    path = folder / "pepper"
    if not path.exists():
        with atomic_write(path) as file:
            path_of_file = Path(file.name)
            path_of_file.chmod(0o600)
            file.write(secrets.token_hex(32))
    return bytes.fromhex(path.read_text(encoding="ascii").strip())


def shown(secret: str) -> str:
    """Enough of a key to know it by, too little to use it."""
    return f"{secret[:5]}**…{secret[-4:]}" if len(secret) > 16 else "**…"
