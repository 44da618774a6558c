"""Ends requests in progress when their API key is revoked, here or by another process.

    await revocations.of(key_id)      returns when the key has been revoked

While requests are in progress, the database is asked about their keys every EVERY seconds, in one query.
"""

import asyncio
from collections.abc import Collection

from sqlalchemy import select

from tutelage.store.database import Database, StorageError
from tutelage.store.tables import ApiKey

EVERY = 0.5


class Revocations:
    """The keys of the requests in progress."""

    def __init__(self, database: Database):
        self._database = database
        self._waiting: dict[asyncio.Future[None], str] = {}  # a request -> its key
        self._asking: asyncio.Task[None] | None = None

    async def of(self, key_id: str) -> None:
        """Return when the key has been revoked."""
        revoked = asyncio.get_running_loop().create_future()
        self._waiting[revoked] = key_id
        if self._asking is None or self._asking.done() or self._asking.get_loop() is not revoked.get_loop():
            self._asking = asyncio.create_task(self._ask())
        try:
            await revoked
        finally:
            del self._waiting[revoked]

    async def _ask(self) -> None:
        while self._waiting:
            await asyncio.sleep(EVERY)
            found = await asyncio.to_thread(self._revoked, set(self._waiting.values()))
            for request, key_id in self._waiting.items():
                if key_id in found and not request.done():
                    request.set_result(None)

    def _revoked(self, key_ids: Collection[str]) -> set[str]:
        """Those of the keys that were revoked; none while the database does not answer."""
        query = select(ApiKey.id).where(ApiKey.id.in_(key_ids), ApiKey.revoked_ms.is_not(None))
        try:
            with self._database.read() as session:
                return set(session.scalars(query))
        except StorageError:
            return set()
