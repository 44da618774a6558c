"""`tutelage keys`: make, list and revoke keys of the API.

action, the server's data folder  ->  a line per key; a new key's secret, shown once
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from sqlalchemy import select
from tyro.conf import Positional

from tutelage.errors import InputError
from tutelage.store.database import Database
from tutelage.store.ids import now_ms
from tutelage.store.tables import ApiKey
from tutelage.web import people
from tutelage.web.keys import KeyRing, open_store

DAY_MS = 86_400_000


@dataclass(frozen=True, kw_only=True)
class KeysConfig:
    """Whose keys, and what a new one may do."""

    data: Path = Path("tutelage-data")
    """The server's data folder."""
    database: str = ""
    """The server's database by its URL; empty is SQLite in --data."""
    name: str = "key"
    """What a new key is for."""
    scopes: tuple[Literal["inference", "admin"], ...] = ("inference",)
    """What a new key may do: inference asks models; admin loads models and reads metrics."""
    requests_per_minute: int = 60_000
    """Most requests of a new key in a minute."""
    tokens_per_minute: int = 10_000_000
    """Most tokens of a new key in a minute, prompts and answers."""
    concurrent: int = 256
    """Most requests of a new key at once."""
    days: int = 0
    """A new key expires after so many days; 0 is never."""


def keys(
    action: Positional[Literal["list", "make", "revoke"]], key: Positional[str] = "", config: KeysConfig = KeysConfig()
) -> None:
    """List the keys, make one, or revoke one by its name or id. A running server sees it within a second.

    Example: tutelage keys make --name laptop --scopes inference
    """
    database, ring = open_store(config.data, config.database)
    try:
        if action == "make":
            make(database, ring, config)
        elif action == "revoke":
            revoke(database, ring, key)
        else:
            for row in all_keys(database):
                print(line_of(row))
    finally:
        database.close()


def make(database: Database, ring: KeyRing, config: KeysConfig) -> None:
    for limit in ("requests_per_minute", "tokens_per_minute", "concurrent"):
        if getattr(config, limit) < 1:
            raise InputError(f"--{limit.replace('_', '-')} {getattr(config, limit)}: must be at least 1")
    row, secret = ring.make(
        people.owner(database).id,
        config.name,
        scopes=config.scopes,
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
        concurrent=config.concurrent,
        expires_ms=now_ms() + config.days * DAY_MS if config.days > 0 else None,
    )
    print(line_of(row))
    print(f"{secret}   (shown only now)")


def revoke(database: Database, ring: KeyRing, named: str) -> None:
    found = [row for row in all_keys(database) if named in (row.id, row.name) and row.revoked_ms is None]
    if len(found) != 1:
        raise InputError(f"{named!r}: {len(found)} keys in use are called so; `tutelage keys list` shows their ids")
    ring.revoke(found[0].id)
    print(f"revoked {found[0].id} ({found[0].name})")


def all_keys(database: Database) -> list[ApiKey]:
    with database.read() as session:
        return list(session.scalars(select(ApiKey).order_by(ApiKey.id)))


def line_of(row: ApiKey) -> str:
    state = "revoked" if row.revoked_ms else f"until {day(row.expires_ms)}" if row.expires_ms else "in use"
    used = f"used {day(row.last_used_ms)}" if row.last_used_ms else "never used"
    return f"{row.id}  {row.prefix}…{row.last4}  {row.name}  {','.join(row.scopes)}  {state}  {used}"


def day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
