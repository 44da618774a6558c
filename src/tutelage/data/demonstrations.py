"""Conversations -> demonstrations for supervised fine-tuning, and windows that fit the model's context.

A demonstration is a whole conversation from the first user turn to the last assistant turn. A question with several
answers gives one demonstration per answer. Windows are cut later, when the tokenizer is known. They are cut between
exchanges; an exchange is a user turn with the answer that follows it.
"""

from collections.abc import Callable

from tutelage.data.messages import Messages
from tutelage.data.records import Demonstration
from tutelage.data.sources import CHATTERBOT, CHITCHAT, Conversation, QuestionAnswers


def from_conversation(conversation: Conversation) -> Demonstration | None:
    """None if the conversation has no assistant turn after a user turn."""
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
    """The part from the first user turn to the last assistant turn, after the system turn if there is one."""
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    rest = messages[len(system) :]
    while rest and rest[0]["role"] != "user":
        rest = rest[1:]
    while rest and rest[-1]["role"] != "assistant":
        rest = rest[:-1]
    return system + rest if rest else []


def windows(messages: Messages, size: Callable[[Messages], int], max_tokens: int) -> tuple[list[Messages], int]:
    """Cut a conversation into consecutive windows of at most `max_tokens` tokens, without overlap.

    `size` is the number of tokens of a conversation that ends with an assistant turn. Each window starts with a user
    turn and ends with an assistant turn; a system turn is repeated at the start of every window. An exchange that is
    too long on its own is dropped, and no window spans the gap. Returns the windows and the number of dropped turns.
    """
    whole = trimmed(messages)
    system = whole[:1] if whole and whole[0]["role"] == "system" else []
    finished: list[Messages] = []
    current: Messages = []
    dropped = 0
    for exchange in _exchanges(whole[len(system) :]):
        if current and size(system + current + exchange) > max_tokens:
            finished.append(system + current)
            current = []
        if not current and size(system + exchange) > max_tokens:
            dropped += len(exchange)
        else:
            current = current + exchange
    return (finished + [system + current] if current else finished), dropped


def _exchanges(messages: Messages) -> list[Messages]:
    """Split before every user turn that follows an assistant turn."""
    exchanges: list[Messages] = []
    for previous, message in zip([None, *messages], messages, strict=False):
        if previous is None or (message["role"] == "user" and previous["role"] == "assistant"):
            exchanges.append([])
        exchanges[-1].append(message)
    return exchanges
