"""Recorded chats as training data: the messages that led to an answer, redacted, without what the model did not see.

an answer  ->  the prompt it answered, as records hold it
"""

from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage.data.messages import Messages
from tutelage.data.privacy import redact
from tutelage.store.tables import ChatMessage, Conversation

CACHED = 256  # chats


def redacted(text: str) -> str:
    """Redact a stored text again: it may have been stored by a version that found less."""
    return redact(text)[0]


class Chat:
    """One chat with all its messages."""

    def __init__(self, row: Conversation, messages: Sequence[ChatMessage]):
        self.row = row
        self.messages = {message.id: message for message in messages}

    @property
    def kept(self) -> bool:
        """Whether the person still keeps the chat."""
        return self.row.deleted_ms is None and not self.row.temporary

    def prompt_of(self, answer: ChatMessage) -> Messages:
        """What the model read before it gave this answer: the system prompt and the turns up to the question."""
        answer = self.messages.get(answer.params.get("instead_of", ""), answer)  # a person's own: what it replaced
        turns = self.visible(self.path(answer.parent_id), answer.dropped_turns)
        return self.records(answer.params.get("system", ""), turns)

    def prompt_to(self, question: ChatMessage) -> Messages:
        """The system prompt and the turns up to a question."""
        answers = self.answers_to(question)
        system = answers[0].params.get("system", "") if answers else self.row.system
        return self.records(system, self.visible(self.path(question.id), 0))

    def answers_to(self, question: ChatMessage) -> list[ChatMessage]:
        """The model's answers to a question, the earliest first."""
        return [row for row in self.messages.values() if row.parent_id == question.id and row.model_id]

    def path(self, last: str | None) -> list[ChatMessage]:
        """The messages from the first of the chat to this one."""
        path: list[ChatMessage] = []
        while last is not None and last in self.messages:
            path.append(self.messages[last])
            last = path[-1].parent_id
        return path[::-1]

    @staticmethod
    def visible(path: Sequence[ChatMessage], dropped: int) -> list[ChatMessage]:
        """The turns without the `dropped` oldest questions, and without questions that moderation stopped.

        The last question stays in any case.
        """
        starts = [index for index, row in enumerate(path) if row.role == "user"]
        first = starts[min(dropped, len(starts) - 1)] if dropped and starts else 0
        hidden = {i + step for i, row in enumerate(path) for step in (-1, 0) if stopped(row)}
        return [row for index, row in enumerate(path) if index >= first and index not in hidden]

    @staticmethod
    def records(system: str, turns: Sequence[ChatMessage]) -> Messages:
        """Messages as records hold them."""
        head = [{"role": "system", "content": redacted(system)}] if system else []
        return head + [{"role": row.role, "content": redacted(row.content)} for row in turns]


def stopped(answer: ChatMessage) -> bool:
    """Whether moderation stopped this answer before its first word."""
    return answer.role == "assistant" and answer.finish_reason == "content_filter" and not answer.content


class Chats:
    """The chats of a database, read when they are needed."""

    def __init__(self, session: Session):
        self._session = session
        self.find = lru_cache(CACHED)(self._find)

    def _find(self, conversation_id: str) -> Chat:
        query = select(ChatMessage).where(ChatMessage.conversation_id == conversation_id).order_by(ChatMessage.id)
        return Chat(self._session.get_one(Conversation, conversation_id), self._session.scalars(query).all())
