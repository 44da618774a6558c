"""Conversations -> demonstrations for supervised fine-tuning, cut to pieces that fit the model's context.

A demonstration is a whole conversation from the first user turn to the last assistant turn; a question with several
answers is one demonstration for each. Windows are cut later, when the tokenizer is known, between exchanges: an
exchange is a user turn with the answer that follows it.
"""

from collections.abc import Callable, Sized
from typing import Protocol

from tutelage.data.records import Demonstration, Messages
from tutelage.data.sources import CHATTERBOT, CHITCHAT, Conversation, QuestionAnswers


class Encoded(Protocol):
    """What `tutelage.text.chat.encode_chat` returns, as far as it is needed here."""

    @property
    def ids(self) -> Sized: ...


def from_conversation(conversation: Conversation) -> Demonstration | None:
    """None if nothing is left between the first user turn and the last assistant turn."""
    messages = trimmed(conversation.messages)
    if not messages:
        return None
    return Demonstration(
        messages, CHITCHAT, lang="en", conversation=conversation.id, ratings=conversation.ratings or None
    )


def from_questions(entry: QuestionAnswers) -> list[Demonstration]:
    question = {"role": "user", "content": entry.question}
    return [
        Demonstration([question, {"role": "assistant", "content": answer}], CHATTERBOT, lang=entry.lang)
        for answer in entry.answers
    ]


def trimmed(messages: Messages) -> Messages:
    """The part that starts with a user turn and ends with an assistant turn, after a system turn if there is one."""
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    rest = messages[len(system) :]
    while rest and rest[0]["role"] != "user":
        rest = rest[1:]
    while rest and rest[-1]["role"] != "assistant":
        rest = rest[:-1]
    return system + rest if rest else []


def windows(messages: Messages, encode: Callable[[Messages], Encoded], max_tokens: int) -> tuple[list[Messages], int]:
    """Cut a conversation into pieces of at most `max_tokens`, in order and without overlap.

    `encode` is `encode_chat` with its tokenizer filled in. Each piece starts with a user turn (after the system turn,
    if there is one: every piece repeats it) and ends with an assistant turn. An exchange that does not fit by itself
    is dropped, and no piece reaches across the gap it leaves. Returns the pieces and how many turns were dropped.
    """
    whole = trimmed(messages)
    system = whole[:1] if whole and whole[0]["role"] == "system" else []
    base = len(encode(system).ids) if system else 0
    pieces: list[Messages] = []
    piece: Messages = []
    room, dropped = max_tokens - base, 0
    for exchange in _exchanges(whole[len(system) :]):
        size = len(encode(system + exchange).ids) - base  # templates only append, so sizes add up
        if piece and size > room:
            pieces.append(system + piece)
            piece, room = [], max_tokens - base
        if size > room:
            dropped += len(exchange)
        else:
            piece, room = piece + exchange, room - size
    return (pieces + [system + piece] if piece else pieces), dropped


def _exchanges(messages: Messages) -> list[Messages]:
    """Split before every user turn that follows an assistant turn."""
    exchanges: list[Messages] = []
    for previous, message in zip([None, *messages], messages, strict=False):
        if previous is None or (message["role"] == "user" and previous["role"] == "assistant"):
            exchanges.append([])
        exchanges[-1].append(message)
    return exchanges
