"""People, their sign-in links, passwords and sessions.

    a one-time link, or e-mail and password  ->  a session: a token in a cookie, of which the database holds a hash

Passwords are hashed with Argon2id. A session ends when it is not used for twelve hours. Guessing is slow: an address
may try five passwords for an account per quarter of an hour, and checking an unknown account takes as long as a known
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
_nobody = _hasher.hash(secrets.token_hex(16))  # compared with if the account is unknown, to take the same time
_tries = FixedWindowRateLimiter(MemoryStorage())


@dataclass(frozen=True)
class SignedIn:
    """A person whose browser showed a valid token."""

    user: User
    csrf: str


@contextmanager
def writing(database: Database, user_id: str) -> Iterator[Session]:
    """A transaction that changes a person's data. Two of these for the same person run one after the other."""
    with database.write() as session:
        session.execute(select(User.id).where(User.id == user_id).with_for_update(key_share=True))
        yield session


def owner(database: Database) -> User:
    """The first active admin, who stands for whoever started the server. Created if there is none."""
    with migrate.setting_up(database), database.write() as session:
        query = select(User).where(User.role == "admin", User.status == "active").order_by(User.id).limit(1)
        user = session.scalar(query)
        if user is None:
            user = User(id=new_id("usr_"), name="owner", role="admin", status="active")
            session.add(user)
    return user


def make_link(database: Database, user_id: str) -> str:
    """Make a link that signs a person in once. Returns its token. The person's older link stops working."""
    token = secrets.token_urlsafe(32)
    with writing(database, user_id) as session:
        session.execute(delete(SignInLink).where(SignInLink.user_id == user_id))
        session.add(
            SignInLink(id=new_id("lnk_"), user_id=user_id, token_sha256=_sha256(token), expires_ms=now_ms() + LINK_MS)
        )
    return token


def use_link(database: Database, token: str, agent: str) -> str | None:
    """Sign in with a link's token. Returns a session's token, or None if the link was used or has expired."""
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
    """The person with this e-mail and password; None if they are wrong, or after too many wrong attempts."""
    email = email.strip().lower()
    # Count before the slow comparison, so that many requests at once cannot get around the limit.
    if not _tries.hit(TRIES, email, address):
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
    """Set a person's e-mail and password. All their sessions end, except the one with this token.

    Raises IntegrityError if another person has this e-mail.
    """
    hashed = _hasher.hash(password)
    with database.write() as session:
        user = session.get_one(User, user_id)
        user.email, user.password_hash = email.strip().lower(), hashed
        others = delete(WebSession).where(WebSession.user_id == user_id, WebSession.token_sha256 != _sha256(token))
        session.execute(others)


def open_session(database: Database, user_id: str, agent: str) -> str:
    """Start a session. Returns the token for the cookie. Expired sessions of all people are deleted."""
    token = secrets.token_urlsafe(32)
    with database.write() as session:
        session.execute(delete(WebSession).where(WebSession.expires_ms <= now_ms()))
        row = WebSession(id=new_id("ses_"), user_id=user_id, token_sha256=_sha256(token), agent=agent[:200])
        row.csrf, row.expires_ms = secrets.token_urlsafe(24), now_ms() + SESSION_MS
        session.add(row)
        session.get_one(User, user_id).last_login_ms = now_ms()
    return token


def find_session(database: Database, token: str) -> SignedIn | None:
    """The person and CSRF token of a session; None if it has ended. Using a session extends it."""
    with database.read() as session:
        query = select(WebSession, User).join(User, User.id == WebSession.user_id)
        found = session.execute(query.where(WebSession.token_sha256 == _sha256(token))).first()
    if found is None or found[0].expires_ms <= now_ms() or found[1].status != "active":
        return None
    row, user = found
    if row.expires_ms - now_ms() < SESSION_MS - HOUR_MS:  # write at most once an hour, not on every request
        # An update, so that a session that was ended just now stays ended. Ignore a full disk: reading must work.
        with suppress(StorageError), database.write() as session:
            longer = update(WebSession).where(WebSession.id == row.id).values(expires_ms=now_ms() + SESSION_MS)
            session.execute(longer)
    return SignedIn(user, row.csrf)


def end_session(database: Database, token: str) -> None:
    with database.write() as session:
        session.execute(delete(WebSession).where(WebSession.token_sha256 == _sha256(token)))


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
