"""Who is asking, and may they: closed unless a door is listed as public.

    Gate        every request: a key for programs, a session for browsers, or refused before any route sees it
    needs       a route for programs names the scope its key must have:   Depends(needs("inference"))
    signed_in   a page:   caller: Page   or, for some roles only,   Depends(page_for("admin"))

A key never comes from a cookie, and a cookie never opens the API. What a browser changes must come from our own
pages: by its Origin, and by the session's token in the form field `csrf` or the header `x-csrf-token`.
"""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tutelage.store.database import Database
from tutelage.store.tables import ApiKey, User
from tutelage.web.errors import ApiError, envelope, is_api, wants_page
from tutelage.web.keys import KeyRing, shown
from tutelage.web.limits import Limits
from tutelage.web.logs import note
from tutelage.web.people import SignedIn, find_session

PUBLIC = {"/healthz", "/health", "/readyz", "/login"}
PUBLIC_BELOW = ("/static/", "/signin/")
SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Caller:
    """Who is asking: always a person, by one of their keys or in a browser."""

    user_id: str
    name: str
    role: str
    key: ApiKey | None = None
    csrf: str = ""


class Gate:
    """ASGI middleware: no request passes without a caller, but for the public doors."""

    def __init__(self, app: ASGIApp, database: Database, keys: KeyRing, limits: Limits):
        self.app, self.database, self.keys, self.limits = app, database, keys, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
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
            return  # no websockets here
        await self.app(scope, receive, send)

    async def caller(self, scope: Scope) -> Caller | None:
        """Raises ApiError unless the request may go on; None only at a public door."""
        path, headers = scope["path"], dict(scope["headers"])
        if path in PUBLIC or path.startswith(PUBLIC_BELOW):
            return None
        if is_api(path):
            return await self.by_key(headers.get(b"authorization", b"").decode("latin-1"))
        token = session_token(scope)
        found = await run_in_threadpool(find_session, self.database, token) if token else None
        if found is None:
            raise ApiError(401, "Sign in first.", code="not_signed_in")
        check_origin(scope, headers)
        return _person(found)

    async def by_key(self, header: str) -> Caller:
        kind, _, secret = header.partition(" ")
        secret = secret.strip()
        if kind.lower() != "bearer" or not secret:
            raise ApiError(
                401,
                "You didn't provide an API key. Send it in the header: Authorization: Bearer YOUR_KEY.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        remembered = self.keys.remembered(secret)
        key = self.keys.find(secret) if remembered else await run_in_threadpool(self.keys.find, secret)
        if key is None:
            message = f"Incorrect API key provided: {shown(secret)}. `tutelage keys` lists and makes keys."
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return Caller(user_id=key.user_id, name=key.name, role="key", key=key)

    def refusal(self, scope: Scope, error: ApiError) -> Response:
        if error.status_code == 401 and wants_page(scope) and scope["method"] in SAFE:
            return RedirectResponse(f"/login?next={quote(scope['path'])}", 303)
        return envelope(error)


def check_origin(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """A browser says where a request comes from; what changes something must come from this very server."""
    if scope["method"] in SAFE:
        return
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    same = site in (b"same-origin", b"none") if site else True
    if origin is not None:
        same = same and urlsplit(origin.decode("latin-1")).netloc == headers.get(b"host", b"").decode("latin-1")
    if not same:
        raise ApiError(403, "This request comes from another site.", code="cross_origin")


def cookie_name(scope: Scope) -> str:
    """Over https the name itself makes browsers refuse a cookie that another host or a plain connection set."""
    return "__Host-tutelage" if scope["scheme"] == "https" else "tutelage"


def session_token(scope: Scope) -> str | None:
    cookie = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
    return cookie_parser(cookie.decode("latin-1")).get(cookie_name(scope))


def set_session(response: Response, scope: Scope, token: str) -> None:
    secure = scope["scheme"] == "https"
    response.set_cookie(cookie_name(scope), token, path="/", secure=secure, httponly=True, samesite="lax")


def _person(found: SignedIn) -> Caller:
    user: User = found.user
    return Caller(user_id=user.id, name=user.name, role=user.role, csrf=found.csrf)


def needs(scope: str) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: the caller's key must have this scope."""

    async def checked(request: Request) -> Caller:
        caller: Caller | None = request.state.caller
        if caller is None or caller.key is None or scope not in caller.key.scopes:
            message = f"This key may not do that: it needs the scope '{scope}'."
            raise ApiError(403, message, code="insufficient_permissions")
        return caller

    return checked


def page_for(*roles: str) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: a person in a browser, of one of these roles (any, if none is named)."""

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
    """The session's token must come in a header, or in the form itself for a page without scripts."""
    given = request.headers.get("x-csrf-token")
    if given is None and "form" in request.headers.get("content-type", ""):
        given = str((await request.form()).get("csrf", ""))
    if not secrets.compare_digest((given or "").encode(), caller.csrf.encode()):
        raise ApiError(403, "The form is out of date: reload the page.", code="csrf")


def the_database(request: Request) -> Database:
    return request.app.state.database


Page = Annotated[Caller, Depends(page_for())]
Admin = Annotated[Caller, Depends(page_for("admin"))]
Inference = Annotated[Caller, Depends(needs("inference"))]
Owner = Annotated[Caller, Depends(needs("admin"))]
Store = Annotated[Database, Depends(the_database)]
