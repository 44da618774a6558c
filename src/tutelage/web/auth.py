"""Authentication and permissions. Every route is closed unless it is listed as public.

    Gate        checks every request before its route: programs need an API key, browsers a session
    needs       the scope that an API route requires of the key:   Depends(needs("inference"))
    page_for    the roles that a page requires:   Depends(page_for("admin"));   caller: Page   allows any role

A key is never read from a cookie, and a cookie never opens the API. A browser's request that changes something must
come from our own pages: its Origin must match, and it must carry the session's CSRF token, in the form field `csrf` or
the header `x-csrf-token`.
"""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from urllib.parse import quote, urlsplit

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.store.database import Database
from tutelage.store.tables import ApiKey, User
from tutelage.web.errors import ApiError, envelope, is_api, lacks_v1, unknown_url, wants_page
from tutelage.web.keys import KeyRing, shown
from tutelage.web.large_bodies import LARGE, LargeBodies
from tutelage.web.limits import Limits
from tutelage.web.logs import note
from tutelage.web.people import SignedIn, find_session

PUBLIC = {"/healthz", "/health", "/readyz", "/login"}
PUBLIC_BELOW = ("/static/", "/signin/")
SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Caller:
    """The person who makes a request, with one of their API keys or in a browser."""

    user_id: str
    name: str
    role: str
    key: ApiKey | None = None
    csrf: str = ""

    @property
    def queue(self) -> str:
        """Whose turn it is where requests wait: each key has its own, and so has each person in a browser."""
        return self.key.id if self.key else self.user_id


class Gate:
    """ASGI middleware: finds the caller of every request and refuses requests without one, except on public routes."""

    def __init__(self, app: ASGIApp, database: Database, keys: KeyRing, limits: Limits):
        self.app, self.database, self.keys, self.limits = app, database, keys, limits
        self.large_bodies = LargeBodies()
        self.looking_up = CapacityLimiter(4)  # threads of their own, so that slow writes delay no look-up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = self.in_turn(scope, receive)
            try:
                caller = await self.caller(scope)
                if caller and caller.key:
                    scope["state"]["headers"] = partial(self.limits.headers, caller.key)
                    self.limits.request(caller.key)
                scope["state"]["caller"] = caller
                if caller:
                    note(user=caller.user_id, **({"key": caller.key.id} if caller.key else {}))
            except ApiError as error:
                await self.refusal(scope, error)(scope, receive, send)
                return
        elif scope["type"] != "lifespan":
            return  # websockets are not supported
        await self.app(scope, receive, send)

    def in_turn(self, scope: Scope, receive: Receive) -> Receive:
        """Wrap `receive`: the end of a large body waits for its turn, as the whole body is parsed when it is complete.

        It raises ApiError for a key without tokens: such a body is not parsed.
        """
        size = 0

        async def received() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            caller = scope["state"]["caller"]
            if size > LARGE and not message.get("more_body", False) and caller:
                if caller.key:
                    self.limits.require_tokens(caller.key)
                await self.large_bodies.turn(caller.queue)
                size = 0
            return message

        return received

    async def caller(self, scope: Scope) -> Caller | None:
        """The caller; None on public routes. Raises ApiError if the request is not allowed."""
        path, headers = scope["path"], dict(scope["headers"])
        if path in PUBLIC or path.startswith(PUBLIC_BELOW):
            return None
        if is_api(path):
            return await self.by_key(headers.get(b"authorization", b"").decode("latin-1"))
        token = session_token(scope)
        session = await run_in_threadpool(find_session, self.database, token) if token else None
        if session is None and lacks_v1(scope):
            raise unknown_url(scope["method"], path)
        if session is None:
            raise ApiError(401, "Sign in first.", code="not_signed_in")
        check_origin(scope, headers)
        return _person(session)

    async def by_key(self, header: str) -> Caller:
        """The caller of an Authorization header. Raises ApiError without a valid key."""
        kind, _, secret = header.partition(" ")
        secret = secret.strip()
        if kind.lower() != "bearer" or not secret:
            raise _no_key("You didn't provide an API key. Send it in the header: Authorization: Bearer YOUR_KEY.")
        cached = self.keys.remembered(secret)
        if cached:
            key = self.keys.find(secret)
        else:
            key = await to_thread.run_sync(self.keys.find, secret, limiter=self.looking_up)
        if key is None:
            raise _no_key(f"Incorrect API key provided: {shown(secret)}. `tutelage keys` lists and makes keys.")
        return Caller(user_id=key.user_id, name=key.name, role="key", key=key)

    def refusal(self, scope: Scope, error: ApiError) -> Response:
        """The error as a response; a browser that is not signed in is sent to the sign-in page."""
        if error.status_code == 401 and wants_page(scope) and scope["method"] in SAFE:
            return RedirectResponse(f"/login?next={quote(scope['path'])}", 303)
        return envelope(error)


def _no_key(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def check_origin(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Raise ApiError if a browser sends a request that changes something from another site's page."""
    if scope["method"] in SAFE:
        return
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    same = site in (b"same-origin", b"none") if site else True
    if origin is not None:
        same = same and urlsplit(origin.decode("latin-1")).netloc == headers.get(b"host", b"").decode("latin-1")
    if not same:
        raise ApiError(403, "This request comes from another site.", code="cross_origin")


def cookie_name(scope: Scope) -> str:
    """The session cookie's name. With the prefix __Host-, browsers accept it only from this host and over https."""
    return "__Host-tutelage" if scope["scheme"] == "https" else "tutelage"


def session_token(scope: Scope) -> str | None:
    cookie = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
    return cookie_parser(cookie.decode("latin-1")).get(cookie_name(scope))


def set_session(response: Response, scope: Scope, token: str) -> None:
    secure = scope["scheme"] == "https"
    response.set_cookie(cookie_name(scope), token, path="/", secure=secure, httponly=True, samesite="lax")


def _person(session: SignedIn) -> Caller:
    user: User = session.user
    return Caller(user_id=user.id, name=user.name, role=user.role, csrf=session.csrf)


def needs(scope: str) -> Callable[[Request], Awaitable[Caller]]:
    """A FastAPI dependency: the caller's key must have this scope."""

    async def checked(request: Request) -> Caller:
        caller: Caller | None = request.state.caller
        if caller is None or caller.key is None or scope not in caller.key.scopes:
            message = f"This key does not have the scope '{scope}', which this route needs."
            raise ApiError(403, message, code="insufficient_permissions")
        return caller

    return checked


def page_for(*roles: str) -> Callable[[Request], Awaitable[Caller]]:
    """A FastAPI dependency: a person in a browser with one of these roles (any role if none is given)."""

    async def checked(request: Request) -> Caller:
        caller: Caller | None = request.state.caller
        if caller is None or caller.key is not None:
            raise ApiError(401, "Sign in first.", code="not_signed_in")
        if roles and caller.role not in roles:
            raise ApiError(403, "Your role does not allow this.", code="insufficient_permissions")
        if request.method not in SAFE:
            await check_csrf(request, caller)
        return caller

    return checked


async def check_csrf(request: Request, caller: Caller) -> None:
    """Raise ApiError unless the session's CSRF token is in the header or in the form field (pages without scripts)."""
    token = request.headers.get("x-csrf-token")
    if token is None and "form" in request.headers.get("content-type", ""):
        token = str((await request.form()).get("csrf", ""))
    if not secrets.compare_digest((token or "").encode(), caller.csrf.encode()):
        raise ApiError(403, "The form is out of date: reload the page.", code="csrf")


def the_database(request: Request) -> Database:
    return request.app.state.database


Page = Annotated[Caller, Depends(page_for())]
Admin = Annotated[Caller, Depends(page_for("admin"))]
Inference = Annotated[Caller, Depends(needs("inference"))]
Owner = Annotated[Caller, Depends(needs("admin"))]
Store = Annotated[Database, Depends(the_database)]
