"""Large bodies are parsed one at a time, the callers' in turn, and for a share of the event loop's time at most.

    await bodies.turn(owner)      then the body may be parsed at once

Parsing JSON and checking its fields holds Python's lock, for up to 0.2 seconds if the body has two megabytes.
"""

import asyncio
import gc
import time
from collections import OrderedDict, deque

LARGE = 64 * 1024  # bytes
SHARE = 0.25  # of the event loop's time


class LargeBodies:
    """The large bodies of one server. All methods belong to the event loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # whose turn it is comes first
        self._busy = False

    async def turn(self, owner: str) -> None:
        """Wait for the owner's turn. What the caller does before it waits for anything else counts as parsing."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # only in tests: each request has a loop of its own
            self._loop, self._busy = loop, False
            self._waiting.clear()
        if self._busy:
            await self._wait(owner, loop.create_future())
        self._busy = True
        gc.disable()  # it would look at all objects again and again while a million new ones appear
        loop.call_soon(self._parsed, loop, time.perf_counter())

    async def _wait(self, owner: str, mine: "asyncio.Future[None]") -> None:
        self._waiting.setdefault(owner, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._next()
            raise

    def _parsed(self, loop: asyncio.AbstractEventLoop, began: float) -> None:
        """The caller waits for something else, so its body is parsed."""
        gc.enable()
        loop.call_later((time.perf_counter() - began) * (1 / SHARE - 1), self._next)

    def _next(self) -> None:
        while self._waiting:
            owner, queue = self._waiting.popitem(last=False)
            mine = queue.popleft()
            if queue:
                self._waiting[owner] = queue
            if not mine.done():
                mine.set_result(None)
                return
        self._busy = False
