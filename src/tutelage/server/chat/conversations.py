"""Recorded chats in the database: begin, continue, show and delete them. People can only access their own.

Callers redact a text (`data/privacy.py`) before they store it. They do it before the transaction, because other writers
wait for that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tutelage.store.consent import chat_source, consent_to
from tutelage.store.ids import new_id, now_ms
from tutelage.store.tables import ChatMessage, Conversation, Feedback, ModerationFlag
from tutelage.text.chat import Message
from tutelage.web.errors import ApiError

MAX_TITLE = 60  # characters of the first question
MAX_LISTED = 200  # chats


@dataclass(frozen=True)
class RecordedTurn:
    """The chat, and the ids of the question and of the answer that is being written."""

    conversation: Conversation
    question: str
    answer: str


def listed(session: Session, user_id: str) -> list[dict[str, str]]:
    """A person's chats, the latest first."""
    query = select(Conversation).where(Conversation.user_id == user_id)
    rows = session.scalars(query.order_by(Conversation.updated_ms.desc(), Conversation.id.desc()).limit(MAX_LISTED))
    return [{"id": row.id, "title": row.title} for row in rows]


def own(session: Session, user_id: str, conversation_id: str) -> Conversation:
    """A chat of this person. Raises ApiError (404) if it does not exist or is another person's."""
    chat = session.get(Conversation, conversation_id)
    if chat is None or chat.user_id != user_id:
        raise ApiError(404, "There is no such chat.", code="not_found")
    return chat


def own_message(session: Session, user_id: str, message_id: str, role: str | None = None) -> ChatMessage:
    """A message in a chat of this person. Raises ApiError (404) for any other."""
    message = session.get(ChatMessage, message_id)
    if message is None or (role and message.role != role):
        raise ApiError(404, "There is no such message.", code="not_found")
    own(session, user_id, message.conversation_id)
    return message


def path_to(session: Session, message: ChatMessage | None) -> list[ChatMessage]:
    """The messages from the first of the chat to this one."""
    path: list[ChatMessage] = []
    while message is not None:
        path.append(message)
        message = session.get(ChatMessage, message.parent_id) if message.parent_id else None
    return path[::-1]


def as_messages(path: Sequence[ChatMessage]) -> list[Message]:
    return [{"role": row.role, "content": row.content} for row in path]


def begin(session: Session, user_id: str, question: str) -> Conversation:
    """Add a chat, with its source and the consent that permits recording it."""
    chat = Conversation(id=new_id("cnv_"), user_id=user_id, title=title_of(question), record_mode="full")
    chat.source_id, chat.consent_id = chat_source(session), consent_to(session, user_id, "record")
    session.add(chat)
    session.flush()
    return chat


def title_of(question: str) -> str:
    """The beginning of the question, on one line."""
    words = " ".join(question.split())
    return words if len(words) <= MAX_TITLE else words[: MAX_TITLE - 1].rstrip() + "…"


def add(
    session: Session, chat: Conversation, parent: str | None, role: str, content: str, **columns: Any
) -> ChatMessage:
    """Add a message. It is shown instead of its siblings, unless `selected` is false."""
    row = ChatMessage(
        id=new_id("msg_"), conversation_id=chat.id, parent_id=parent, role=role, content=content, **columns
    )
    session.add(row)
    session.flush()
    if row.selected:
        select_one(session, row)
    chat.updated_ms = now_ms()
    return row


def select_one(session: Session, message: ChatMessage) -> None:
    """Show this message instead of its siblings."""
    parent = message.parent_id
    same_parent = ChatMessage.parent_id.is_(None) if parent is None else ChatMessage.parent_id == parent
    query = select(ChatMessage).where(ChatMessage.conversation_id == message.conversation_id, same_parent)
    for sibling in session.scalars(query):
        sibling.selected = sibling.id == message.id


def forget(session: Session, chat: Conversation) -> None:
    """Delete a chat, and the flags on its messages, which contain their text."""
    messages = select(ChatMessage.id).where(ChatMessage.conversation_id == chat.id)
    session.execute(delete(ModerationFlag).where(ModerationFlag.message_id.in_(messages)))
    session.delete(chat)


def shown(
    session: Session, user_id: str, chat: Conversation, formatted: Callable[[list[str]], list[str]]
) -> list[dict[str, Any]]:
    """All messages of a chat for the page, oldest first. `formatted` turns Markdown texts into HTML."""
    query = select(ChatMessage).where(ChatMessage.conversation_id == chat.id)
    rows = session.scalars(query.order_by(ChatMessage.created_ms, ChatMessage.id)).all()
    mine = select(Feedback).where(Feedback.user_id == user_id, Feedback.kind == "thumb")
    found = session.scalars(mine.where(Feedback.message_id.in_([row.id for row in rows])))
    thumbs = {thumb.message_id: thumb for thumb in found}
    html = iter(formatted([row.content for row in rows if row.role != "user"]))
    return [message_shown(row, "" if row.role == "user" else next(html), thumbs.get(row.id)) for row in rows]


def message_shown(row: ChatMessage, html: str, thumb: Feedback | None = None) -> dict[str, Any]:
    """A message for the page; an answer also has its HTML, its model and the person's thumb."""
    message = {
        "id": row.id,
        "parent": row.parent_id,
        "role": row.role,
        "content": row.content,
        "selected": row.selected,
    }
    if row.role == "user":
        return message
    feedback = {"thumb": thumb.value, "reasons": thumb.reasons, "comment": thumb.text or ""} if thumb else {}
    answer = {
        "html": html,
        "model": row.model_id,
        "finish_reason": row.finish_reason,
        "tokens": row.completion_tokens,
        "dropped": row.dropped_turns,
    }
    return message | feedback | answer
