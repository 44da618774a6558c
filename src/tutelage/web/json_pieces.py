"""Large values as JSON, a piece at a time: one call for all of it would hold Python's lock for seconds.

joined(value)  ->  bytes, in a thread: others get the lock between two pieces
await in_turns(value)  ->  bytes, in the event loop: others go on between two pieces
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

SLICE = 50  # items of a list in one piece
PIECE = 50_000  # characters between two turns


def joined(value: Any) -> bytes:
    """Compact JSON in UTF-8, without NaN. A lone surrogate, which UTF-8 cannot encode, becomes a question mark."""
    return "".join(pieces(value)).encode("utf-8", "replace")


async def in_turns(value: Any) -> bytes:
    """Like `joined`."""
    parts: list[bytes] = []
    size = 0
    for piece in pieces(value):
        parts.append(piece.encode("utf-8", "replace"))
        size += len(piece)
        if size > PIECE:
            await asyncio.sleep(0)
            size = 0
    return b"".join(parts)


def pieces(value: Any) -> Iterator[str]:
    """The value's JSON in pieces of at most SLICE items of a long list."""
    if isinstance(value, dict):
        yield from _between("{", (_member(name, item) for name, item in value.items()), "}")
    elif isinstance(value, list) and len(value) <= SLICE:
        yield from _between("[", map(pieces, value), "]")
    elif isinstance(value, list):
        slices = (value[first : first + SLICE] for first in range(0, len(value), SLICE))
        yield from _between("[", (iter([_text(items)[1:-1]]) for items in slices), "]")
    else:
        yield _text(value)


def _between(opening: str, members: Iterator[Iterator[str]], closing: str) -> Iterator[str]:
    yield opening
    for number, member in enumerate(members):
        if number:
            yield ","
        yield from member
    yield closing


def _member(name: str, item: Any) -> Iterator[str]:
    yield _text(name) + ":"
    yield from pieces(item)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
