"""PostgreSQL stores no NUL character, so every NUL is replaced by U+FFFD on its way there."""

import json
from typing import Any


def without_nul(value: Any) -> Any:
    """Text or JSON with every NUL replaced by U+FFFD: PostgreSQL stores no NUL."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [without_nul(item) for item in value]
    if isinstance(value, dict):
        return {without_nul(name): without_nul(item) for name, item in value.items()}
    return value


def json_without_nul(value: Any) -> str:
    return json.dumps(without_nul(value))


def replace_nul_in_text(connection: Any, record: Any) -> None:
    """Pass all text sent to PostgreSQL, stored or searched for, through `without_nul`."""
    from psycopg.types.string import StrDumperUnknown

    class Dumper(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(without_nul(obj))

    connection.adapters.register_dumper(str, Dumper)
