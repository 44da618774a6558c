"""Sign-in, sign-out, the account page, and inviting people.

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
    """The path to go to after signing in, if it is a path of this server; otherwise "/"."""
    safe = path.startswith("/") and not path.startswith("//") and "\\" not in path
    return path if safe else "/"


@router.get("/login")
def show_login(request: Request, next: str = "/") -> Response:
    return render(request, "login.html", next=own_path(next), email="", failed=False)


@router.post("/login")
async def login(
    request: Request, database: Store, email: Field = "", password: Field = "", next: Field = "/"
) -> Response:
    """Sign in with e-mail and password."""
    check_origin(request.scope, dict(request.scope["headers"]))
    # Anybody may post here and hashing takes much memory and time, so only a few run at once and the others wait.
    address, hashing = request.client.host if request.client else "", request.app.state.hashing
    user = await to_thread.run_sync(people.check_password, database, email, password, address, limiter=hashing)
    if user is None:
        return render(request, "login.html", 401, next=own_path(next), email=email, failed=True)
    token = await run_in_threadpool(people.open_session, database, user.id, request.headers.get("user-agent", ""))
    return signed_in(request, token, own_path(next))


@router.get("/signin/{token}")
def open_link(request: Request, database: Store, token: str) -> Response:
    """Sign in a browser that navigates to the link.

    A messenger's preview or a prefetch must not use up the link. Any request that is not clearly a navigation gets a
    page with a button instead.
    """
    headers = request.headers
    if headers.get("sec-fetch-mode") != "navigate" or "prefetch" in headers.get("sec-purpose", ""):
        return render(request, "signin.html")
    return use_link(request, database, token)


@router.post("/signin/{token}")
def press_button(request: Request, database: Store, token: str) -> Response:
    check_origin(request.scope, dict(request.scope["headers"]))
    return use_link(request, database, token)


def use_link(request: Request, database: Database, token: str) -> Response:
    session = people.use_link(database, token, request.headers.get("user-agent", ""))
    if session is None:
        message = "This link has already been used or has expired. Ask for a new one."
        raise ApiError(404, message, code="link_used")
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
    """Add a person. The page shows the link that signs them in."""
    if not name.strip() or role not in ROLES:
        raise ApiError(400, "A person needs a name and a role.", param="name")
    user = User(id=new_id("usr_"), name=name.strip(), role=role)
    with database.write() as session:
        session.add(user)
    return with_link(request, database, user.id)


@router.post("/people/{user_id}/link")
def invite_again(request: Request, caller: Admin, database: Store, user_id: str) -> Response:
    """A new link for a person who lost theirs or forgot the password."""
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
    """Disable a person or enable them again. Nobody can disable themselves."""
    if status not in ("active", "disabled") or user_id == caller.user_id:
        raise ApiError(400, "Give the status active or disabled, for a person other than yourself.", param="status")
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
