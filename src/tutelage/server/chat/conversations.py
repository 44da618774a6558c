"""Kept chats in the store: begun, continued, shown again, renamed, deleted. Each person reaches their own alone.

What identifies a person (e-mail and web addresses, phone numbers) is replaced before a word of theirs, or of an answer,
is stored. `redact` comes before the transaction, for which others may wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tutelage.store.consent import chat_source, consent_to
from tutelage.store.ids import new_id, now_ms
from tutelage.store.tables import ChatMessage, Conversation, Feedback, ModerationFlag
from tutelage.text.chat import Message
from tutelage.web.errors import ApiError
from tutelage.web.pages import markdown

TITLE = 60  # characters of the first question
LISTED = 200


@dataclass(frozen=True)
class KeptTurn:
    """Where a question and the answer to come stand in the store."""

    conversation: Conversation
    question: str
    answer: str


def listed(session: Session, user_id: str) -> list[dict[str, str]]:
    """A person's chats, the latest first."""
    query = select(Conversation).where(Conversation.user_id == user_id)
    rows = session.scalars(query.order_by(Conversation.updated_ms.desc(), Conversation.id.desc()).limit(LISTED))
    return [{"id": row.id, "title": row.title} for row in rows]


def own(session: Session, user_id: str, conversation_id: str) -> Conversation:
    """A chat of this person. Raises ApiError for any other, as if it were not there."""
    found = session.get(Conversation, conversation_id)
    if found is None or found.user_id != user_id:
        raise ApiError(404, "There is no such chat.", code="not_found")
    return found


def own_message(session: Session, user_id: str, message_id: str, role: str | None = None) -> ChatMessage:
    """A message in a chat of this person. Raises ApiError for any other."""
    found = session.get(ChatMessage, message_id)
    if found is None or (role and found.role != role):
        raise ApiError(404, "There is no such message.", code="not_found")
    own(session, user_id, found.conversation_id)
    return found


def path_to(session: Session, message: ChatMessage | None) -> list[ChatMessage]:
    """The messages from the first to this one."""
    path: list[ChatMessage] = []
    while message is not None:
        path.append(message)
        message = session.get(ChatMessage, message.parent_id) if message.parent_id else None
    return path[::-1]


def as_messages(path: Sequence[ChatMessage]) -> list[Message]:
    return [{"role": row.role, "content": row.content} for row in path]


def begin(session: Session, user_id: str, question: str) -> Conversation:
    """A new chat, with where it comes from and the consent it is kept under."""
    chat = Conversation(
        id=new_id("cnv_"), user_id=user_id, title=title_of(question), record_mode="full",
        source_id=chat_source(session), consent_id=consent_to(session, user_id, "record"),
    )  # fmt: skip
    session.add(chat)
    session.flush()
    return chat


def title_of(question: str) -> str:
    words = " ".join(question.split())
    return words if len(words) <= TITLE else words[: TITLE - 1].rstrip() + "…"


def add(session: Session, chat: Conversation, parent: str | None, role: str, content: str, **more: Any) -> ChatMessage:
    """One more message, shown in place of its siblings unless it is to be compared first."""
    row = ChatMessage(id=new_id("msg_"), conversation_id=chat.id, parent_id=parent, role=role, content=content, **more)
    session.add(row)
    session.flush()
    if row.selected:
        select_one(session, row)
    chat.updated_ms = now_ms()
    return row


def select_one(session: Session, message: ChatMessage) -> None:
    """Show this message and none of its siblings."""
    query = select(ChatMessage).where(
        ChatMessage.conversation_id == message.conversation_id, ChatMessage.parent_id == message.parent_id
    )
    if message.parent_id is None:
        query = select(ChatMessage).where(
            ChatMessage.conversation_id == message.conversation_id, ChatMessage.parent_id.is_(None)
        )
    for sibling in session.scalars(query):
        sibling.selected = sibling.id == message.id


def forget(session: Session, chat: Conversation) -> None:
    """Delete a chat; the flags on its messages hold their text, and go too."""
    messages = select(ChatMessage.id).where(ChatMessage.conversation_id == chat.id)
    session.execute(delete(ModerationFlag).where(ModerationFlag.message_id.in_(messages)))
    session.delete(chat)


def shown(session: Session, user_id: str, chat: Conversation) -> list[dict[str, Any]]:
    """All messages of a chat as the page wants them, oldest first."""
    query = select(ChatMessage).where(ChatMessage.conversation_id == chat.id)
    rows = session.scalars(query.order_by(ChatMessage.created_ms, ChatMessage.id)).all()
    thumbs = select(Feedback).where(Feedback.user_id == user_id, Feedback.kind == "thumb")
    said = {row.message_id: row for row in session.scalars(thumbs.where(Feedback.message_id.in_([r.id for r in rows])))}
    return [message_shown(row, said.get(row.id)) for row in rows]


def message_shown(row: ChatMessage, thumb: Feedback | None = None) -> dict[str, Any]:
    common = {
        "id": row.id, "parent": row.parent_id, "role": row.role, "content": row.content, "selected": row.selected,
    }  # fmt: skip
    if row.role == "user":
        return common
    judged = {"thumb": thumb.value, "reasons": thumb.reasons, "comment": thumb.text or ""} if thumb else {}
    return common | judged | {
        "html": str(markdown(row.content)), "model": row.model_id, "finish_reason": row.finish_reason,
        "tokens": row.completion_tokens, "dropped": row.dropped_turns,
    }  # fmt: skip
