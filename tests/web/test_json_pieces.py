"""JSON in pieces: the same bytes as in one call, and others go on between the pieces."""

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.web.json_pieces import in_turns, joined, pieces

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=60) | st.dictionaries(st.text(), inner))


@settings(max_examples=20)
@given(value=VALUES)
def test_the_bytes_are_those_of_one_call(value: Any) -> None:
    expected = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    assert joined(value) == asyncio.run(in_turns(value)) == expected.encode("utf-8", "replace")


def test_no_piece_is_large_and_others_go_on() -> None:
    value = {"choices": [{"logprobs": {"content": [{"token": "x" * 30, "top": [1.5] * 20}] * 900}}] * 4, "a": [[]] * 51}
    assert max(map(len, pieces(value))) < 10_000
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def both() -> bytes:
        other = asyncio.create_task(tick())
        content = await in_turns(value)
        other.cancel()
        return content

    assert json.loads(asyncio.run(both())) == value and ticks >= 8
