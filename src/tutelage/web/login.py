"""Signing in and out, one's own account, and inviting others.

/login   /signin/TOKEN   /logout   /account   /people
"""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Form, Request
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from tutelage.store.database import Database
from tutelage.store.ids import new_id
from tutelage.store.tables import User
from tutelage.web import people
from tutelage.web.auth import Admin, Page, Store, check_origin, session_token, set_session
from tutelage.web.errors import ApiError

router = APIRouter(include_in_schema=False)
ROLES = ("user", "annotator", "reviewer", "admin")
Field = Annotated[str, Form()]


def render(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    return request.app.state.pages.render(request, template, status, **context)


def own_path(path: str) -> str:
    """Where to go after signing in: a path of this server, nothing else."""
    safe = path.startswith("/") and not path.startswith("//") and "\\" not in path
    return path if safe else "/"


@router.get("/login")
def show_login(request: Request, next: str = "/") -> Response:
    return render(request, "login.html", next=own_path(next), email="", failed=False)


@router.post("/login")
async def login(
    request: Request, database: Store, email: Field = "", password: Field = "", next: Field = "/"
) -> Response:
    """Comparing a password takes much memory and time, and anybody may ask for it: few at once, the others wait."""
    check_origin(request.scope, dict(request.scope["headers"]))
    address, hashing = request.client.host if request.client else "", request.app.state.hashing
    user = await to_thread.run_sync(people.check_password, database, email, password, address, limiter=hashing)
    if user is None:
        return render(request, "login.html", 401, next=own_path(next), email=email, failed=True)
    token = await run_in_threadpool(people.open_session, database, user.id, request.headers.get("user-agent", ""))
    return signed_in(request, token, own_path(next))


@router.get("/signin/{token}")
def open_link(request: Request, database: Store, token: str) -> Response:
    """Signs in the browser that goes there. A messenger's preview or a prefetch must not use the link up: for all that
    does not say it is a browser on its way there, it takes a press of a button."""
    asked = request.headers
    if asked.get("sec-fetch-mode") != "navigate" or "prefetch" in asked.get("sec-purpose", ""):
        return render(request, "signin.html")
    return use_link(request, database, token)


@router.post("/signin/{token}")
def press_button(request: Request, database: Store, token: str) -> Response:
    check_origin(request.scope, dict(request.scope["headers"]))
    return use_link(request, database, token)


def use_link(request: Request, database: Database, token: str) -> Response:
    session = people.use_link(database, token, request.headers.get("user-agent", ""))
    if session is None:
        raise ApiError(404, "This link was used already, or is too old. Ask for a new one.", code="link_used")
    return signed_in(request, session, "/")


def signed_in(request: Request, token: str, to: str) -> Response:
    response = RedirectResponse(to, 303, {"referrer-policy": "no-referrer"})
    set_session(response, request.scope, token)
    return response


@router.post("/logout")
def logout(request: Request, caller: Page, database: Store) -> Response:
    people.end_session(database, session_token(request.scope) or "")
    return RedirectResponse("/login", 303)


@router.get("/account")
def account(request: Request, caller: Page, database: Store) -> Response:
    return render(request, "account.html", user=find_user(database, caller.user_id), problem="", saved=False)


@router.post("/account")
def save_account(request: Request, caller: Page, database: Store, email: Field = "", password: Field = "") -> Response:
    problem = ""
    if "@" not in email or len(password) < people.LEAST_PASSWORD:
        problem = "fields"
    else:
        try:
            people.set_password(database, caller.user_id, email, password, session_token(request.scope) or "")
        except IntegrityError:
            problem = "taken"
    user = find_user(database, caller.user_id)
    return render(request, "account.html", 400 if problem else 200, user=user, problem=problem, saved=not problem)


@router.get("/people")
def show_people(request: Request, caller: Admin, database: Store) -> Response:
    return render(request, "people.html", users=all_users(database), roles=ROLES, link="")


@router.post("/people")
def invite(request: Request, caller: Admin, database: Store, name: Field = "", role: Field = "user") -> Response:
    """Add a person; the page shows the link with which they sign in and choose a password."""
    if not name.strip() or role not in ROLES:
        raise ApiError(400, "A person needs a name and a role.", param="name")
    user = User(id=new_id("usr_"), name=name.strip(), role=role)
    with database.write() as session:
        session.add(user)
    return with_link(request, database, user.id)


@router.post("/people/{user_id}/link")
def invite_again(request: Request, caller: Admin, database: Store, user_id: str) -> Response:
    """A new link for somebody whose link is gone, or whose password is forgotten."""
    with database.read() as session:
        user = session.get(User, user_id)
    if user is None or user.status != "active":
        raise ApiError(404, "There is no such person.", code="not_found")
    return with_link(request, database, user_id)


def with_link(request: Request, database: Database, user_id: str) -> Response:
    link = str(request.url_for("open_link", token=people.make_link(database, user_id)))
    return render(request, "people.html", users=all_users(database), roles=ROLES, link=link)


@router.post("/people/{user_id}")
def change_status(request: Request, caller: Admin, database: Store, user_id: str, status: Field) -> Response:
    """Disable a person, or let them in again. Nobody locks themselves out."""
    if status not in ("active", "disabled") or user_id == caller.user_id:
        raise ApiError(400, "Only another person can be disabled or let in again.", param="status")
    with database.write() as session:
        user = session.get(User, user_id)
        if user is None:
            raise ApiError(404, "There is no such person.", code="not_found")
        user.status = status
    return RedirectResponse("/people", 303)


def find_user(database: Store, user_id: str) -> User:
    with database.read() as session:
        return session.get_one(User, user_id)


def all_users(database: Store) -> list[User]:
    with database.read() as session:
        return list(session.scalars(select(User).order_by(User.id)))
