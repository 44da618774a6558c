"""What people said on the chat page, as records to train on: consented, redacted, and traceable to a database row.

    training_data(session, "kto")  ->  TrainingData: the records in order of time; how many rows were left out, and why

Besides the fields of its kind of record, a record names its database row (`id`), chat (`conversation`), time
(`created`), and the model that wrote the answer with the hash of its weights (`model`, `weights`; null for a person's
own text, a list in a comparison). Annotators are pseudonyms.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage.data.splits import split_person
from tutelage.store.recorded_chats import Chat, Chats, redacted, stopped
from tutelage.store.tables import ChatMessage, Comparison, Conversation, Feedback, ModerationFlag, Source
from tutelage.store.training_consent import Consents

Kind = Literal["kto", "comparisons", "demonstrations", "flags", "prompts"]
Item = dict[str, Any] | str  # a record, or why a row is left out

RANKS = {"a": [1, 2], "b": [2, 1], "tie": [1, 1], "both_bad": [1, 1]}
GONE = "in a deleted or temporary chat"
TAKEN_BACK = "thumb taken back"
UNDECIDED = "comparison without a choice"
EMPTY = "empty answer"
EQUAL = "two equal answers"
STOPPED = "question stopped by moderation"


@dataclass
class TrainingData:
    """The records of one kind, and how many rows are left out, by reason."""

    records: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def summary(self) -> str:
        """For example: 12 exported, 3 left out (consent withdrawn 2, thumb taken back 1)."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.left_out.items()))
        return f"{len(self.records):,} exported, {self.left_out.total():,} left out" + (
            f" ({reasons})" if reasons else ""
        )


def training_data(session: Session, kind: Kind) -> TrainingData:
    """Everything of this kind that may train a model. The same database gives the same records in the same order."""
    found = TrainingData()
    for item in ITEMS[kind](Reader(session)):
        if isinstance(item, str):
            found.left_out[item] += 1
        else:
            found.records.append(item)
    return found


def pseudonym(user_id: str) -> str:
    """The annotator's name in records: the same person has the same name.

    An id has 80 random bits, so only somebody with the database can find the person. They can do so by `id` as well.
    """
    return "person-" + hashlib.sha256(f"annotator {user_id}".encode()).hexdigest()[:12]


class Reader:
    """One reading of a database: its consents, chats and sources."""

    def __init__(self, session: Session):
        self.session, self.consents, self.chats = session, Consents(session), Chats(session)
        self.sources = {row.id: row.name for row in session.scalars(select(Source))}

    def objection(self, user_id: str, consent_id: str | None, chat: Chat | None) -> str | None:
        """Why a row is left out, whatever it says; None if nothing speaks against it."""
        return self.consents.objection(user_id, consent_id) or (None if chat is None or chat.kept else GONE)

    def provenance(self, row: Any, chat: Chat | None, ms: int) -> dict[str, Any]:
        """The fields by which a record can be traced, and removed when its row is gone."""
        source = getattr(row, "source_id", None) or (chat and chat.row.source_id)
        user_id = chat.row.user_id if chat else row.user_id
        fields = {"annotator": pseudonym(user_id), "source": self.sources.get(source or "", "unknown")}
        fields |= {"conversation": chat.row.id} if chat else {}
        created = datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
        return fields | {"id": row.id, "created": created}

    def feedback(self, kind: str) -> Iterator[tuple[Feedback, Chat, ChatMessage]]:
        """The feedback rows of a kind, each with its chat and its answer."""
        query = select(Feedback, ChatMessage.conversation_id).join(ChatMessage, ChatMessage.id == Feedback.message_id)
        for row, conversation in self.session.execute(query.where(Feedback.kind == kind).order_by(Feedback.id)):
            chat = self.chats.find(conversation)
            yield row, chat, chat.messages[row.message_id]


def kto(reader: Reader) -> Iterator[Item]:
    """Thumbs, as feedback records. A changed thumb is one row, which holds the last choice."""
    for row, chat, answer in reader.feedback("thumb"):
        objection = reader.objection(row.user_id, row.consent_id, chat)
        if objection or row.value == 0 or not answer.content.strip():
            yield objection or (TAKEN_BACK if row.value == 0 else EMPTY)
            continue
        said: dict[str, Any] = {"reasons": row.reasons} if row.reasons else {}
        said |= {"comment": redacted(row.text)} if row.text else {}
        record = {"prompt": chat.prompt_of(answer), "response": redacted(answer.content), "thumb": row.value}
        written_by = {"model": answer.model_id, "weights": answer.fingerprint}
        yield record | reader.provenance(row, chat, row.updated_ms) | written_by | said


def comparisons(reader: Reader) -> Iterator[Item]:
    """Comparisons of two answers, and each better answer with the answer that it replaces, in order of time."""
    blind = reader.session.scalars(select(Comparison).order_by(Comparison.id))
    rows: list[tuple[Comparison | Feedback, Chat]] = [(row, reader.chats.find(row.conversation_id)) for row in blind]
    rows += [(row, chat) for row, chat, _ in reader.feedback("demonstration")]
    for row, chat in sorted(rows, key=lambda pair: pair[0].id.partition("_")[2]):
        yield reader.objection(row.user_id, row.consent_id, chat) or compared(reader, row, chat)


def compared(reader: Reader, row: Comparison | Feedback, chat: Chat) -> Item:
    """One comparison record."""
    if isinstance(row, Feedback):
        original = chat.messages[row.message_id]
        return pair(reader, row, chat, [(row.text or "", None), (original.content, original)], [1, 2])
    if row.winner is None:
        return UNDECIDED
    answers = [chat.messages[row.a_message_id], chat.messages[row.b_message_id]]
    return pair(reader, row, chat, [(answer.content, answer) for answer in answers], RANKS[row.winner])


def pair(
    reader: Reader,
    row: Comparison | Feedback,
    chat: Chat,
    answers: Sequence[tuple[str, ChatMessage | None]],
    ranks: list[int],
) -> Item:
    """A comparison of two answers. answers: the text and the message of each; no message for a better answer."""
    responses = [redacted(text) for text, _ in answers]
    if not all(text.strip() for text in responses):
        return EMPTY
    if responses[0].strip() == responses[1].strip():
        return EQUAL
    original = next(message for _, message in answers if message)
    record: dict[str, Any] = {"prompt": chat.prompt_of(original), "responses": responses, "ranks": ranks}
    decided = row.decided_ms if isinstance(row, Comparison) else None
    record |= reader.provenance(row, chat, decided or row.updated_ms)
    record |= {"model": [message and message.model_id for _, message in answers]}
    record |= {"weights": [message and message.fingerprint for _, message in answers]}
    return record | ({"reasons": row.reasons} if row.reasons else {})


def demonstrations(reader: Reader) -> Iterator[Item]:
    """Better answers that people wrote, each after the conversation that it continues."""
    for row, chat, answer in reader.feedback("demonstration"):
        objection, text = reader.objection(row.user_id, row.consent_id, chat), redacted(row.text or "")
        if objection or not text.strip():
            yield objection or EMPTY
            continue
        messages = [*chat.prompt_of(answer), {"role": "assistant", "content": text}]
        written_by = {"model": None, "weights": None}
        yield {"messages": messages} | reader.provenance(row, chat, row.updated_ms) | written_by


def flags(reader: Reader) -> Iterator[Item]:
    """Texts with the moderation categories that people named, as flag records."""
    query = select(ModerationFlag, ChatMessage).outerjoin(ChatMessage, ChatMessage.id == ModerationFlag.message_id)
    for row, answer in reader.session.execute(query.order_by(ModerationFlag.id)):
        chat = reader.chats.find(answer.conversation_id) if answer else None
        objection = reader.objection(row.user_id, row.consent_id, chat)
        written_by = {"model": answer and answer.model_id, "weights": answer and answer.fingerprint}
        record = {"text": redacted(row.text), "flags": row.categories}
        yield objection or record | reader.provenance(row, chat, row.updated_ms) | written_by


def prompts(reader: Reader) -> Iterator[Item]:
    """Questions of people who consented to training when they asked them. All of a person's are in one split."""
    query = select(ChatMessage.id, Conversation.id).join(Conversation, Conversation.id == ChatMessage.conversation_id)
    for message, conversation in reader.session.execute(
        query.where(ChatMessage.role == "user").order_by(ChatMessage.id)
    ).all():
        chat = reader.chats.find(conversation)
        yield asked(reader, chat, chat.messages[message])


def asked(reader: Reader, chat: Chat, question: ChatMessage) -> Item:
    """One prompt record."""
    user, answers = chat.row.user_id, chat.answers_to(question)
    if objection := reader.objection(user, reader.consents.at(user, question.created_ms), chat):
        return objection
    if answers and all(stopped(answer) for answer in answers):
        return STOPPED
    record = {"prompt": chat.prompt_to(question), "split": split_person(user)}
    return record | reader.provenance(question, chat, question.created_ms)


ITEMS: dict[Kind, Callable[[Reader], Iterator[Item]]] = {
    "kto": kto,
    "comparisons": comparisons,
    "demonstrations": demonstrations,
    "flags": flags,
    "prompts": prompts,
}
