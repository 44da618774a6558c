"""API keys. The secret is shown once, when the key is made; the database holds only a keyed hash of it.

    secret = sk-...  ->  HMAC-SHA256(pepper, secret)  ->  the row in `api_keys`

A key has 256 random bits, so a fast hash is enough. The pepper is in a file beside the database, so a stolen database
alone cannot be used to check guesses (`pepper.py`). Look-ups are cached for REMEMBERED_SECONDS, so a key revoked by
another process may work that much longer. While the database does not answer, the keys that it knew last go on working.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select, update

from tutelage.errors import InputError
from tutelage.store import migrate
from tutelage.store.database import Database, StorageError, sqlite_url
from tutelage.store.ids import new_id, now_ms
from tutelage.store.private import private_folder
from tutelage.store.tables import ApiKey
from tutelage.web.pepper import open_pepper

SCOPES = ("inference", "admin")
REMEMBERED_SECONDS = 1.0
USED_EVERY_MS = 60_000  # `last_used_ms` is written at most this often


class KeyRing:
    """Makes, finds and revokes keys."""

    def __init__(self, database: Database, pepper: bytes):
        self._database = database
        self._pepper = pepper
        self._cache: dict[str, tuple[float, ApiKey | None]] = {}  # by hash: when it was looked up, the key

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
        """Make a key. Returns its row and the secret, which cannot be recovered later."""
        if unknown := set(scopes) - set(SCOPES):
            raise InputError(f"{sorted(unknown)[0]!r}: not a scope; choose from {', '.join(SCOPES)}")
        secret = "sk-" + secrets.token_urlsafe(32)
        key = ApiKey(id=new_id("key_"), user_id=user_id, name=name, scopes=list(scopes), expires_ms=expires_ms)
        key.prefix, key.last4, key.hash = secret[:9], secret[-4:], self._hash(secret)
        key.requests_per_minute, key.tokens_per_minute = requests_per_minute, tokens_per_minute
        key.concurrent = concurrent
        with self._database.write() as session:
            session.add(key)
        return key, secret

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret; None if there is none, or it was revoked or has expired."""
        digest = self._hash(secret)
        when, key = self._cache.get(digest, (0.0, None))
        if time.monotonic() - when > REMEMBERED_SECONDS:
            key = self._look_up(digest)
        if key is None or (key.expires_ms is not None and key.expires_ms <= now_ms()):
            return None
        return key

    def remembered(self, secret: str) -> bool:
        """Whether `find` needs no database query for this secret."""
        when, _ = self._cache.get(self._hash(secret), (0.0, None))
        return time.monotonic() - when <= REMEMBERED_SECONDS

    def revoke(self, key_id: str) -> bool:
        """Revoke a key. Returns False if there is no such key, or it was revoked before."""
        revoked = revoke(self._database, key_id)
        self._cache.clear()
        return revoked

    def _hash(self, secret: str) -> str:
        return hmac.new(self._pepper, secret.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def _look_up(self, digest: str) -> ApiKey | None:
        _, known = self._cache.get(digest, (0.0, None))
        if known:  # requests that arrive meanwhile use it
            self._cache[digest] = (time.monotonic(), known)
        try:
            with self._database.read() as session:
                key = session.scalar(select(ApiKey).where(ApiKey.hash == digest, ApiKey.revoked_ms.is_(None)))
        except StorageError:
            if known is None:
                raise
            return known
        if key is None:
            self._cache.pop(digest, None)  # not cached: wrong guesses must not fill the memory
            return None
        self._note_use(key)
        self._cache[digest] = (time.monotonic(), key)
        return key

    def _note_use(self, key: ApiKey) -> None:
        """Write when the key was last used, unless others are writing or the disk is full: the request must not wait.

        An update of this column only, because the key may have been revoked just now.
        """
        if now_ms() - (key.last_used_ms or 0) > USED_EVERY_MS:
            with suppress(StorageError), self._database.write(patience=0) as session:
                session.execute(update(ApiKey).where(ApiKey.id == key.id).values(last_used_ms=now_ms()))


def revoke(database: Database, key_id: str) -> bool:
    """Revoke a key. Returns False if there is no such key, or it was revoked before. Needs no pepper."""
    with database.write() as session:
        key = session.get(ApiKey, key_id, with_for_update=True)
        if key is None or key.revoked_ms is not None:
            return False
        key.revoked_ms = now_ms()
    return True


def open_store(data: Path, url: str) -> tuple[Database, KeyRing]:
    """Open the database, migrate its tables, and return it with its key ring."""
    private_folder(data)
    database = Database(url or sqlite_url(data / "tutelage.db"))
    migrate.upgrade(database)
    with migrate.setting_up(database):
        return database, KeyRing(database, open_pepper(data, database))


def shown(secret: str) -> str:
    """A key's secret with all but its ends masked."""
    return f"{secret[:5]}**…{secret[-4:]}" if len(secret) > 16 else "**…"
