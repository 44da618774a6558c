"""The tables: people, chats, feedback, consents, API keys, stored completions.

Ids carry a prefix (`usr_`, `msg_`, ...); objects of OpenAI's API carry OpenAI's prefixes. Times are milliseconds since
1970, UTC. A column with few possible values is text with a CHECK. Every row that may be used for training records its
source, the consent in force, and the weights that wrote the text.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tutelage.store.ids import now_ms

Json = JSON().with_variant(JSONB(), "postgresql")
# Collation "C" compares bytes. Other locales reorder upper and lower case, and ids would not sort by creation time.
Name = String(64).with_variant(String(64, collation="C"), "postgresql")


class Base(DeclarativeBase):
    """Base of all tables. Constraints get fixed names, so that migrations can refer to them."""

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
    """The columns that nearly every table has."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(Name, primary_key=True)
    created_ms: Mapped[int] = mapped_column(default=now_ms)
    updated_ms: Mapped[int] = mapped_column(default=now_ms, onupdate=now_ms)


def one_of(column: str, *values: str) -> CheckConstraint:
    """The column may hold only these values."""
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def part_of(table: str) -> Any:
    """A foreign key; this row is deleted together with the other."""
    return mapped_column(Name, ForeignKey(f"{table}.id", ondelete="CASCADE"), index=True)


def mentions(table: str) -> Any:
    """A foreign key that becomes NULL when the other row is deleted."""
    return mapped_column(Name, ForeignKey(f"{table}.id", ondelete="SET NULL"), index=True)


class User(Row):
    """A person who can sign in."""

    __tablename__ = "users"
    __table_args__ = (one_of("role", "admin", "annotator", "reviewer", "user"), one_of("status", "active", "disabled"))

    email: Mapped[str | None] = mapped_column(unique=True)
    """Lower case."""
    name: Mapped[str]
    password_hash: Mapped[str | None]
    role: Mapped[str] = mapped_column(default="user")
    status: Mapped[str] = mapped_column(default="active")
    last_login_ms: Mapped[int | None]


class SignInLink(Row):
    """A link that signs a person in once."""

    __tablename__ = "sign_in_links"

    user_id: Mapped[str] = part_of("users")
    token_sha256: Mapped[str] = mapped_column(unique=True)
    expires_ms: Mapped[int]


class WebSession(Row):
    """A signed-in browser. Its cookie holds a token; the table holds only the token's hash."""

    __tablename__ = "sessions"

    user_id: Mapped[str] = part_of("users")
    token_sha256: Mapped[str] = mapped_column(unique=True)
    csrf: Mapped[str]
    expires_ms: Mapped[int] = mapped_column(index=True)
    agent: Mapped[str | None]


class ApiKey(Row):
    """An API key: the HMAC of its secret, its scopes, limits and expiry."""

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
    """One decision of a person, to consent or to withdraw. The latest row of a kind is in force."""

    __tablename__ = "consents"
    __table_args__ = (one_of("kind", "record", "train", "share"), one_of("given_by", "ui", "api", "import"))

    user_id: Mapped[str] = part_of("users")
    kind: Mapped[str]
    granted: Mapped[bool]
    text_version: Mapped[str]
    given_by: Mapped[str] = mapped_column(default="ui")


class Source(Row):
    """Provenance of text: how it came in, and under which licence."""

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
    """A recorded chat of one person."""

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
    """One message. `parent_id` makes a chat a tree: an edited question or another answer is a sibling."""

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
    reasoning: Mapped[str | None]
    """What the model wrote between <think> marks before an answer's content."""
    redacted: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """How many personal details were replaced in content and reasoning, by kind (`data/privacy.py`)."""
    request_id: Mapped[str | None]


class Feedback(Row):
    """A person's feedback on one answer: a thumb, a report, or a better answer. Changing it updates the row."""

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
    """A blind comparison: two answers to the same question, in the order they were shown, and the better one."""

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
    """A chat completion stored at its caller's request (`store: true`); its id is the completion's."""

    __tablename__ = "stored_completions"

    api_key_id: Mapped[str] = part_of("api_keys")
    source_id: Mapped[str | None] = mentions("sources")
    model: Mapped[str] = mapped_column(index=True)
    request: Mapped[dict[str, Any]]
    response: Mapped[dict[str, Any]]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)


class StoredResponse(Row):
    """A response of the Responses API, stored at its caller's request; its id is the response's."""

    __tablename__ = "stored_responses"

    api_key_id: Mapped[str] = part_of("api_keys")
    source_id: Mapped[str | None] = mentions("sources")
    previous_id: Mapped[str | None] = mapped_column(Name)
    """The response that it continues. It may have been deleted since."""
    model: Mapped[str]
    request: Mapped[dict[str, Any]]
    response: Mapped[dict[str, Any]]


class ModerationFlag(Row):
    """A person's flag on a text: training data of the moderation classifier."""

    __tablename__ = "moderation_flags"

    user_id: Mapped[str] = part_of("users")
    message_id: Mapped[str | None] = mentions("messages")
    consent_id: Mapped[str | None] = mentions("consents")
    text: Mapped[str]
    flagged: Mapped[bool]
    categories: Mapped[list[str]] = mapped_column(default=list)


class Setting(Base):
    """A policy that an admin sets on the pages, such as whether chats may be recorded (`consent.py`)."""

    __tablename__ = "settings"

    key: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[dict[str, Any]]
    updated_ms: Mapped[int] = mapped_column(default=now_ms, onupdate=now_ms)
