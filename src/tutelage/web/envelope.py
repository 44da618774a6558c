"""ASGI middleware around the whole app: headers of every response, limits on bodies, errors, metrics and the log.

    x-request-id, openai-processing-ms, openai-version, and x-ratelimit-* if the caller has a key

A body that is too large or too slow is refused. An uncaught exception becomes a 500 in OpenAI's error shape, and its
traceback goes to the log with the request's id. When a request ends it is counted and gets its line in the log.
"""

import asyncio
import logging
import time

from prometheus_client import Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.store.database import StorageError
from tutelage.store.ids import new_id
from tutelage.web import logs
from tutelage.web.errors import ApiError, refusal
from tutelage.web.errors import envelope as in_envelope

BODY_BYTES = 2 * 1024 * 1024
BODY_SECONDS = 60.0
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
API_VERSION = "2020-10-01"  # as OpenAI sends it; clients ignore it

REQUESTS = Counter(
    "tutelage_requests_total",
    "Requests by route and status; status 0: the client left before the response",
    ["route", "status"],
)
SECONDS = Histogram("tutelage_request_seconds", "Duration of requests, in seconds", ["route"], buckets=BUCKETS)

logger = logging.getLogger("tutelage.web")


class Envelope:
    """See the module's opening."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        request_id = new_id("req_")
        facts = logs.begin(request_id)
        scope.setdefault("state", {}).update(caller=None, request_id=request_id, headers=dict)

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-version"] = API_VERSION
                headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - started)))
                headers.update(scope["state"]["headers"]())
            await send(message)

        try:
            check_length(scope)
            await self.app(scope, limited(receive), with_headers)
        except (ApiError, StorageError) as error:
            if status:
                raise
            await in_envelope(refusal(error))(scope, receive, with_headers)
        except Exception:
            logger.exception("a request failed: %s", request_id)
            if status:
                raise
            message = f"Internal server error. The server's log has the details under {request_id}."
            await in_envelope(ApiError(500, message))(scope, receive, with_headers)
        finally:
            route, seconds = getattr(scope.get("route"), "path", "none"), time.perf_counter() - started
            REQUESTS.labels(route, status).inc()
            SECONDS.labels(route).observe(seconds)
            facts.update(method=scope["method"], route=route, status=status, ms=round(1000 * seconds))
            logs.access.info("request")


def check_length(scope: Scope) -> None:
    """Raise ApiError if the content-length header announces too large a body."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if not length.isdigit() or int(length) > BODY_BYTES:
        raise too_large()


def limited(receive: Receive) -> Receive:
    """Wrap `receive`: raise ApiError for a chunked body that grows too large, or one that takes too long."""
    size, deadline = 0, asyncio.get_running_loop().time() + BODY_SECONDS
    complete = False

    async def counted() -> Message:
        nonlocal size, complete
        try:
            async with asyncio.timeout_at(None if complete else deadline):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} seconds.") from None
        complete = complete or not message.get("more_body", False)
        size += len(message.get("body", b""))
        if size > BODY_BYTES:
            raise too_large()
        return message

    return counted


def too_large() -> ApiError:
    return ApiError(413, f"The body is larger than {BODY_BYTES} bytes.", code="request_too_large")
