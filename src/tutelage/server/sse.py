"""Server-sent events, byte for byte as OpenAI's clients expect them.

    async generator of JSON values  ->  data: {...}\\n\\n ... data: [DONE]\\n\\n

No event names (a client would try to read theirs as JSON); a comment every ten seconds keeps proxies from closing a
quiet connection. When the reader goes away, what writes is cancelled at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tutelage.store.database import StorageError
from tutelage.web.errors import ApiError, dump, refusal
from tutelage.web.logs import note

PING_SECONDS = 10.0
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(content: Any) -> bytes:
    return b"data: " + dump(content) + b"\n\n"


class EventStream(Response):
    """Sends what `events` yields; an error in it becomes the last event."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None):
        super().__init__(headers=HEADERS | dict(headers or {}))
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pings = asyncio.create_task(_ping(send))
        try:
            await until_gone(receive, self._write(send))
        finally:
            pings.cancel()
            await asyncio.wait({pings})
        with contextlib.suppress(OSError):  # the reader went away
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
            try:
                async for chunk in events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except (ApiError, StorageError) as error:
                await self._fail(send, refusal(error))
            except Exception:
                await self._fail(send, ApiError(500, "The server made a mistake; its log says more."))
                raise

    async def _fail(self, send: Send, error: ApiError) -> None:
        note(error=error.reason)
        await send({"type": "http.response.body", "body": event({"error": error.body}), "more_body": True})


async def _ping(send: Send) -> None:
    while True:
        await asyncio.sleep(PING_SECONDS)
        await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})


async def until_gone(receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """The work's result; None, the work cancelled, if the client goes away before."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        note(gone=True)
        working.cancel()
        await asyncio.wait({working})
        return None
    finally:
        gone.cancel()
        working.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer_or_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """For an answer in one piece: nobody generates for a client that has left."""
    return await until_gone(request.receive, work) or Response(status_code=499)
