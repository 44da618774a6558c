"""What people say, do and allow, as tables.

Names carry a prefix (`usr_`, `msg_` ...; what OpenAI's API shows keeps its own prefixes). Times are milliseconds, UTC.
A column with few values is text with a CHECK. Every row that may one day train a model says where it came from
(`source`), under which consent, and which weights wrote it.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tutelage.store.ids import now_ms

Json = JSON().with_variant(JSONB(), "postgresql")
# By bytes: names sort by the time they were made only if no locale reorders upper and lower case.
Name = String(64).with_variant(String(64, collation="C"), "postgresql")


class Base(DeclarativeBase):
    """Constraints carry names, so that a migration can find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: Json, list[Any]: Json, list[str]: Json, int: BigInteger, str: Text}


class Row(Base):
    """What nearly every table has."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(Name, primary_key=True)
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    updated_ms: Mapped[int] = mapped_column(default=now_ms, onupdate=now_ms)


def one_of(column: str, *values: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def part_of(table: str) -> Any:
    """A column that names a row of another table, and goes with it."""
    return mapped_column(Name, ForeignKey(f"{table}.id", ondelete="CASCADE"), index=True)


def mentions(table: str) -> Any:
    """A column that names a row of another table, and becomes empty when that goes."""
    return mapped_column(Name, ForeignKey(f"{table}.id", ondelete="SET NULL"), index=True)


class User(Row):
    """A person who can sign in."""

    __tablename__ = "users"
    __table_args__ = (one_of("role", "admin", "annotator", "reviewer", "user"), one_of("status", "active", "disabled"))

    email: Mapped[str | None] = mapped_column(unique=True)
    """In lower case."""
    name: Mapped[str]
    password_hash: Mapped[str | None]
    role: Mapped[str] = mapped_column(default="user")
    status: Mapped[str] = mapped_column(default="active")
    last_login_ms: Mapped[int | None]


class SignInLink(Row):
    """A link that signs its person in once."""

    __tablename__ = "sign_in_links"

    user_id: Mapped[str] = part_of("users")
    token_sha256: Mapped[str] = mapped_column(unique=True)
    expires_ms: Mapped[int]


class WebSession(Row):
    """A browser that is signed in. The cookie holds a token of which only the hash is here."""

    __tablename__ = "sessions"

    user_id: Mapped[str] = part_of("users")
    token_sha256: Mapped[str] = mapped_column(unique=True)
    csrf: Mapped[str]
    expires_ms: Mapped[int] = mapped_column(index=True)
    agent: Mapped[str | None]


class ApiKey(Row):
    """A key of the API: HMAC of the secret, what it may do, how much, until when."""

    __tablename__ = "api_keys"

    user_id: Mapped[str] = part_of("users")
    name: Mapped[str]
    prefix: Mapped[str]
    last4: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    requests_per_minute: Mapped[int]
    tokens_per_minute: Mapped[int]
    concurrent: Mapped[int]
    store_default: Mapped[bool] = mapped_column(default=False)
    expires_ms: Mapped[int | None]
    revoked_ms: Mapped[int | None]
    last_used_ms: Mapped[int | None]


class Consent(Row):
    """What a person allowed or withdrew; the latest row of a kind counts."""

    __tablename__ = "consents"
    __table_args__ = (one_of("kind", "record", "train", "share"), one_of("given_by", "ui", "api", "import"))

    user_id: Mapped[str] = part_of("users")
    kind: Mapped[str]
    granted: Mapped[bool]
    text_version: Mapped[str]
    given_by: Mapped[str] = mapped_column(default="ui")


class Source(Row):
    """Provenance: by which door something came in, and under which licence."""

    __tablename__ = "sources"
    __table_args__ = (one_of("kind", "import", "api", "chat", "manual", "synthetic"), UniqueConstraint("kind", "name"))

    kind: Mapped[str]
    name: Mapped[str]
    uri: Mapped[str | None]
    licence: Mapped[str | None]
    importer_version: Mapped[str | None]
    sha256: Mapped[str | None] = mapped_column(index=True)
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Conversation(Row):
    """A chat of one person; `temporary` ones are never kept for training and go with the session."""

    __tablename__ = "conversations"
    __table_args__ = (
        one_of("record_mode", "none", "metadata", "full"),
        Index("ix_conversations_user_id_updated_ms", "user_id", "updated_ms"),
    )

    user_id: Mapped[str] = part_of("users")
    source_id: Mapped[str | None] = mentions("sources")
    consent_id: Mapped[str | None] = mentions("consents")
    title: Mapped[str] = mapped_column(default="")
    model_id: Mapped[str | None]
    system: Mapped[str] = mapped_column(default="")
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    record_mode: Mapped[str] = mapped_column(default="none")
    temporary: Mapped[bool] = mapped_column(default=False)
    archived: Mapped[bool] = mapped_column(default=False)
    deleted_ms: Mapped[int | None]


class ChatMessage(Row):
    """One turn; a tree by `parent_id`: an edit or a second answer is a sibling."""

    __tablename__ = "messages"
    __table_args__ = (
        one_of("role", "system", "user", "assistant"),
        Index("ix_messages_conversation_id_created_ms", "conversation_id", "created_ms"),
    )

    conversation_id: Mapped[str] = part_of("conversations")
    parent_id: Mapped[str | None] = part_of("messages")
    role: Mapped[str]
    content: Mapped[str]
    selected: Mapped[bool] = mapped_column(default=True)
    model_id: Mapped[str | None]
    fingerprint: Mapped[str | None]
    params: Mapped[dict[str, Any]] = mapped_column(default=dict)
    finish_reason: Mapped[str | None]
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    dropped_turns: Mapped[int] = mapped_column(default=0)
    ttft_ms: Mapped[int | None]
    moderation: Mapped[dict[str, Any]] = mapped_column(default=dict)
    redacted: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """How often each kind of what identifies a person was replaced in the content."""
    request_id: Mapped[str | None]


class Feedback(Row):
    """What a person said of one answer: a thumb, a report, or a better answer. A change of mind updates the row."""

    __tablename__ = "feedback"
    __table_args__ = (
        one_of("kind", "thumb", "report", "demonstration"),
        CheckConstraint("value IN (-1, 0, 1)", name="value"),
        CheckConstraint("kind <> 'demonstration' OR text IS NOT NULL", name="demonstration"),
        UniqueConstraint("user_id", "message_id", "kind"),
    )

    user_id: Mapped[str] = part_of("users")
    message_id: Mapped[str] = part_of("messages")
    source_id: Mapped[str | None] = mentions("sources")
    consent_id: Mapped[str | None] = mentions("consents")
    kind: Mapped[str]
    value: Mapped[int] = mapped_column(default=0)
    reasons: Mapped[list[str]] = mapped_column(default=list)
    text: Mapped[str | None]


class Comparison(Row):
    """A blind pair: two answers to the same turn, in the order they were shown, and which one was better."""

    __tablename__ = "comparisons"
    __table_args__ = (
        CheckConstraint("winner IS NULL OR winner IN ('a', 'b', 'tie', 'both_bad')", name="winner"),
        CheckConstraint("a_message_id <> b_message_id", name="two_answers"),
    )

    user_id: Mapped[str] = part_of("users")
    conversation_id: Mapped[str] = part_of("conversations")
    a_message_id: Mapped[str] = part_of("messages")
    b_message_id: Mapped[str] = part_of("messages")
    source_id: Mapped[str | None] = mentions("sources")
    consent_id: Mapped[str | None] = mentions("consents")
    winner: Mapped[str | None]
    reasons: Mapped[list[str]] = mapped_column(default=list)
    decided_ms: Mapped[int | None]


class StoredCompletion(Row):
    """A chat completion that its caller asked to keep (`store: true`); its name is the completion's."""

    __tablename__ = "stored_completions"

    api_key_id: Mapped[str] = part_of("api_keys")
    source_id: Mapped[str | None] = mentions("sources")
    model: Mapped[str] = mapped_column(index=True)
    request: Mapped[dict[str, Any]]
    response: Mapped[dict[str, Any]]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)


class ModerationFlag(Row):
    """A person's verdict on a text: what the moderation classifier learns from."""

    __tablename__ = "moderation_flags"

    user_id: Mapped[str] = part_of("users")
    message_id: Mapped[str | None] = mentions("messages")
    consent_id: Mapped[str | None] = mentions("consents")
    text: Mapped[str]
    flagged: Mapped[bool]
    categories: Mapped[list[str]] = mapped_column(default=list)


class Setting(Base):
    """A policy that an admin sets on the pages; what it means stands where it is read."""

    __tablename__ = "settings"

    key: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[dict[str, Any]]
    updated_ms: Mapped[int] = mapped_column(default=now_ms, onupdate=now_ms)
