"""People: who they are, how they sign in, and for how long.

    a one-time link, or e-mail and password  ->  a session, whose token lies in a cookie and only as a hash in the
    database

Passwords are Argon2id. A session that is not used for twelve hours ends. Guessing is slowed: five wrong passwords for
an account from one address close that door for a quarter of an hour, and an unknown account takes as long as a known
one.
"""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from tutelage.store import migrate
from tutelage.store.database import Database, StorageError
from tutelage.store.ids import new_id, now_ms
from tutelage.store.tables import SignInLink, User, WebSession

HOUR_MS = 3_600_000
SESSION_MS = 12 * HOUR_MS
LINK_MS = 24 * HOUR_MS
TRIES = RateLimitItemPerMinute(5, 15)
LEAST_PASSWORD = 8

_hasher = PasswordHasher()
_nobody = _hasher.hash(secrets.token_hex(16))
_tries = FixedWindowRateLimiter(MemoryStorage())


@dataclass(frozen=True)
class SignedIn:
    """A person whose browser showed a valid token."""

    user: User
    csrf: str


@contextmanager
def writing(database: Database, user_id: str) -> Iterator[Session]:
    """A transaction in which a person changes what is theirs; their other ones wait until it has ended."""
    with database.write() as session:
        session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
        yield session


def owner(database: Database) -> User:
    """The person who started the server: the first admin, made when there is none."""
    with migrate.setting_up(database), database.write() as session:
        query = select(User).where(User.role == "admin", User.status == "active").order_by(User.id).limit(1)
        user = session.scalar(query)
        if user is None:
            user = User(id=new_id("usr_"), name="owner", role="admin", status="active")
            session.add(user)
    return user


def make_link(database: Database, user_id: str) -> str:
    """The token of a link that signs a person in once; an older one of theirs stops working."""
    token = secrets.token_urlsafe(32)
    with writing(database, user_id) as session:
        session.execute(delete(SignInLink).where(SignInLink.user_id == user_id))
        session.add(
            SignInLink(id=new_id("lnk_"), user_id=user_id, token_sha256=_sha256(token), expires_ms=now_ms() + LINK_MS)
        )
    return token


def use_link(database: Database, token: str, agent: str) -> str | None:
    """Sign in with a link's token, which is used up by it: a session's token, or None for a link that is no more."""
    with database.write() as session:
        link = session.scalar(select(SignInLink).where(SignInLink.token_sha256 == _sha256(token)).with_for_update())
        if link is None:
            return None
        session.delete(link)
        user = session.get(User, link.user_id)
    if link.expires_ms <= now_ms() or user is None or user.status != "active":
        return None
    return open_session(database, user.id, agent)


def check_password(database: Database, email: str, password: str, address: str) -> User | None:
    """The person, if e-mail and password fit and there were not too many wrong ones before."""
    email = email.strip().lower()
    if not _tries.hit(TRIES, email, address):  # counted before the slow comparison: many at once are no way around it
        return None
    with database.read() as session:
        user = session.scalar(select(User).where(User.email == email, User.status == "active"))
    if not _fits((user and user.password_hash) or _nobody, password) or user is None:
        return None
    _tries.clear(TRIES, email, address)
    return user


def _fits(hashed: str, password: str) -> bool:
    try:
        return _hasher.verify(hashed, password)
    except Argon2Error:
        return False


def set_password(database: Database, user_id: str, email: str, password: str, token: str = "") -> None:
    """E-mail and password to sign in with; of the person's sessions only the one of this token goes on.

    Raises IntegrityError where the address is another's.
    """
    hashed = _hasher.hash(password)
    with database.write() as session:
        user = session.get_one(User, user_id)
        user.email, user.password_hash = email.strip().lower(), hashed
        others = delete(WebSession).where(WebSession.user_id == user_id, WebSession.token_sha256 != _sha256(token))
        session.execute(others)


def open_session(database: Database, user_id: str, agent: str) -> str:
    """A fresh session: the token for the cookie. Old sessions that have ended are cleared away."""
    token = secrets.token_urlsafe(32)
    with database.write() as session:
        session.execute(delete(WebSession).where(WebSession.expires_ms <= now_ms()))
        session.add(
            WebSession(
                id=new_id("ses_"), user_id=user_id, token_sha256=_sha256(token), csrf=secrets.token_urlsafe(24),
                expires_ms=now_ms() + SESSION_MS, agent=agent[:200],
            )
        )  # fmt: skip
        session.get_one(User, user_id).last_login_ms = now_ms()
    return token


def find_session(database: Database, token: str) -> SignedIn | None:
    """Whose browser this is, if the session has not ended; its end moves on while it is used."""
    with database.read() as session:
        query = select(WebSession, User).join(User, User.id == WebSession.user_id)
        found = session.execute(query.where(WebSession.token_sha256 == _sha256(token))).first()
    if found is None or found[0].expires_ms <= now_ms() or found[1].status != "active":
        return None
    row, user = found
    if row.expires_ms - now_ms() < SESSION_MS - HOUR_MS:  # written once an hour, not at every click
        # Only if it is still there: the person may have signed out just now. A full disk keeps nobody from reading.
        with suppress(StorageError), database.write() as session:
            longer = update(WebSession).where(WebSession.id == row.id).values(expires_ms=now_ms() + SESSION_MS)
            session.execute(longer)
    return SignedIn(user, row.csrf)


def end_session(database: Database, token: str) -> None:
    with database.write() as session:
        session.execute(delete(WebSession).where(WebSession.token_sha256 == _sha256(token)))


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
