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
from tutelage.web.json_pieces import PIECE
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
            await run_until_disconnect(scope, receive, self._write(send))
        except ApiError as error:
            await self._fail(send, error)
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
                    if len(chunk) > PIECE:  # such events may follow one another
                        await asyncio.sleep(0)
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


async def run_until_disconnect(scope: Scope, receive: Receive, work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine. Returns its result, or cancels it and returns None if the client disconnects first.

    Also cancels it if the caller's key is revoked, and raises ApiError.
    """
    working = asyncio.create_task(work)
    ends = [asyncio.create_task(_disconnected(receive)), *_revoked(scope)]
    try:
        await asyncio.wait({working, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.wait({working})
        if not ends[0].done():
            raise ApiError(401, "This API key has been revoked.", code="invalid_api_key")
        note(gone=True)
        return None
    finally:
        for end in (working, *ends):
            end.cancel()


def _revoked(scope: Scope) -> "list[asyncio.Task[None]]":
    """A task that ends when the caller's key is revoked; none for a person in a browser."""
    caller = scope.get("state", {}).get("caller")
    return [asyncio.create_task(scope["app"].state.revocations.of(caller.key.id))] if caller and caller.key else []


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def respond_until_disconnect(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response that a coroutine makes; 499, and the coroutine cancelled, if the client disconnects first."""
    return await run_until_disconnect(request.scope, request.receive, work) or Response(status_code=499)
