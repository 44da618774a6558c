"""`tutelage keys`: make, list and revoke API keys.

action, the server's data folder  ->  one line per key; the secret of a new key, shown only once
"""

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from sqlalchemy import select
from tyro.conf import Positional

from tutelage.errors import InputError
from tutelage.options import Advanced, Count64, Range, out_of_range
from tutelage.store.database import Database, without_password
from tutelage.store.existing import find_existing, open_existing
from tutelage.store.ids import now_ms
from tutelage.store.tables import ApiKey
from tutelage.web import people
from tutelage.web.keys import KeyRing, open_store
from tutelage.web.keys import revoke as revoke_key

DAY_MS = 86_400_000
LONGEST_NAME = 100  # characters
Days = Annotated[int, Range(least=0, most=100_000)]  # the calendar ends with the year 9999


@dataclass(frozen=True, kw_only=True)
class KeysConfig:
    """The server whose keys these are, and the settings of a new key."""

    data: Path = Path("tutelage-data")
    """The server's data folder (`tutelage serve --data`)."""
    database: Advanced[str] = ""
    """URL of the server's database. Empty: the SQLite file in --data."""
    name: str = "key"
    """Name of a new key."""
    scopes: tuple[Literal["inference", "admin"], ...] = ("inference",)
    """What a new key may do. inference: use models; admin: load models and read metrics."""
    requests_per_minute: Count64 = 60_000
    """Maximum requests per minute of a new key."""
    tokens_per_minute: Count64 = 10_000_000
    """Maximum tokens per minute of a new key, prompts and completions together."""
    concurrent: Count64 = 256
    """Maximum concurrent requests of a new key."""
    days: Days = 0
    """Number of days after which a new key expires; 0 means never."""

    def __post_init__(self) -> None:
        if wrong := out_of_range(self):
            raise InputError(wrong)
        if not self.name.isprintable() or not 0 < len(self.name) <= LONGEST_NAME:
            raise InputError(f"--name: must be 1 to {LONGEST_NAME} printable characters, as each is listed in a line")


def keys(
    action: Positional[Literal["list", "make", "revoke"]], key: Positional[str] = "", config: KeysConfig = KeysConfig()
) -> None:
    """List the API keys, make one, or revoke one by its name or id. A running server follows within a second.

    action: What to do.
    key: Name or id of the key to revoke.

    Example: tutelage keys make --name laptop --scopes inference
    """
    if action == "list":
        list_keys(config)
        return
    if action == "revoke":
        with closing(open_existing(str(config.data), config.database)) as database:
            revoke(database, key)
        return
    database, ring = open_store(config.data, config.database)
    with closing(database):
        make(database, ring, config)


def list_keys(config: KeysConfig) -> None:
    """Print one line per key. Creates nothing where no server has run."""
    database = find_existing(config.data, config.database)
    rows = []
    if database is not None:
        with closing(database):
            rows = all_keys(database)
    where = without_password(config.database) or config.data
    why = "no server has run here, so there is no database" if database is None else "the database holds none"
    print("\n".join(map(line_of, rows)) or f"{where}: no keys: {why}; tutelage keys make makes one")


def make(database: Database, ring: KeyRing, config: KeysConfig) -> None:
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


def revoke(database: Database, name: str) -> None:
    matches = [row for row in all_keys(database) if name in (row.id, row.name) and row.revoked_ms is None]
    if len(matches) != 1:
        raise InputError(f"{name!r}: matches {len(matches)} keys in use; give an id from `tutelage keys list`")
    revoke_key(database, matches[0].id)
    print(f"revoked {matches[0].id} ({matches[0].name})")


def all_keys(database: Database) -> list[ApiKey]:
    with database.read() as session:
        return list(session.scalars(select(ApiKey).order_by(ApiKey.id)))


def line_of(row: ApiKey) -> str:
    state = "revoked" if row.revoked_ms else f"until {day(row.expires_ms)}" if row.expires_ms else "in use"
    used = f"used {day(row.last_used_ms)}" if row.last_used_ms else "never used"
    return f"{row.id}  {row.prefix}…{row.last4}  {row.name}  {','.join(row.scopes)}  {state}  {used}"


def day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
