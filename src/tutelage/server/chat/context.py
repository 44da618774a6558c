"""Builds the prompt from a conversation: without turns that moderation stopped, and without the oldest if too long.

turns  ->  without those whose question was stopped  ->  without the oldest  ->  ids of the prompt
"""

import bisect
from typing import Any

from tutelage.errors import InputError
from tutelage.moderation.moderator import Moderator
from tutelage.text.chat import Message, encode_chat
from tutelage.web.errors import ApiError


def stopped_turns(moderator: Moderator, earlier: list[Message]) -> set[int]:
    """Indices of the messages whose question moderation stopped, with their answers.

    The model must not see them, or a later question could refer to them.
    """
    stopped, indices = False, set()
    for index, message in enumerate(earlier):
        if message["role"] == "user":
            stopped = moderator.stops("input", moderator.check([message["content"]])[0])
        if stopped:
            indices.add(index)
    return indices


def fit_to_context(
    served: Any, system: str, messages: list[Message], max_tokens: int, hidden: set[int]
) -> tuple[tuple[int, ...], int]:
    """The prompt's ids without the messages in `hidden`, and how many of the oldest turns were dropped to make it fit.

    Raises ApiError if even the last turn is too long.
    """
    questions = [index for index, message in enumerate(messages) if message["role"] == "user"]
    head: list[Message] = [{"role": "system", "content": system}] if system else []

    def ids(dropped: int) -> tuple[int, ...]:
        start = questions[dropped] if dropped else 0
        visible = [message for index, message in enumerate(messages) if index >= start and index not in hidden]
        try:
            return tuple(encode_chat(served.tokenizer, head + visible, add_generation_prompt=True).ids)
        except InputError as error:
            raise ApiError(400, str(error), code="invalid_value") from None

    if not questions:
        raise ApiError(400, "There is no question to answer.", param="messages", code="invalid_value")
    room = served.context - max_tokens
    dropped = bisect.bisect_left(range(len(questions)), True, key=lambda count: len(ids(count)) <= room)
    if dropped == len(questions):
        message = (
            f"This is too long: the model's context is {served.context} tokens, of which {max_tokens} are for the "
            "answer. Shorten the message or the system prompt, or ask for a shorter answer in the settings."
        )
        raise ApiError(400, message, param="messages", code="context_length_exceeded")
    return ids(dropped), dropped
