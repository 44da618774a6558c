"""Server-sent events, byte for byte as OpenAI's clients expect them.

    async generator of events as bytes  ->  data: {...}\\n\\n ... data: [DONE]\\n\\n

Only events of the Responses API have names: elsewhere OpenAI's clients would misread them. A comment every PING_SECONDS
keeps proxies from closing a quiet connection. When the client disconnects, the generator is cancelled at once.
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
    """A JSON value as one event."""
    return b"data: " + dump(content) + b"\n\n"


def named_event(name: str, content: Any) -> bytes:
    """A JSON value as one event with a name."""
    return b"event: " + name.encode() + b"\n" + event(content)


class EventStream(Response):
    """Sends the events that a generator yields. An error in the generator becomes the last event."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None):
        super().__init__(headers=HEADERS | dict(headers or {}))
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pings = asyncio.create_task(_ping(send))
        try:
            await run_until_disconnect(receive, self._write(send))
        finally:
            pings.cancel()
            await asyncio.wait({pings})
        with contextlib.suppress(OSError):  # the client has disconnected
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
            try:
                async for chunk in events:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except (ApiError, StorageError) as error:
                await self._fail(send, refusal(error))
            except Exception:
                await self._fail(send, ApiError(500, "Internal server error. The server's log has the details."))
                raise

    async def _fail(self, send: Send, error: ApiError) -> None:
        note(error=error.reason)
        await send({"type": "http.response.body", "body": event({"error": error.body}), "more_body": True})


async def _ping(send: Send) -> None:
    while True:
        await asyncio.sleep(PING_SECONDS)
        await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})


async def run_until_disconnect(receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine. Returns its result, or cancels it and returns None if the client disconnects first."""
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


async def respond_until_disconnect(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response that a coroutine makes; 499, and the coroutine cancelled, if the client disconnects first."""
    return await run_until_disconnect(request.receive, work) or Response(status_code=499)
