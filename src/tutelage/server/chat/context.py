"""Builds the prompt from a conversation: without turns that moderation stopped, and without the oldest if too long.

turns  ->  without those whose question was stopped  ->  without the oldest  ->  ids of the prompt
"""

from tutelage.errors import InputError
from tutelage.server.registry import Served
from tutelage.server.text_work import TextWork
from tutelage.text.chat import Message
from tutelage.web.errors import ApiError


async def stopped_turns(work: TextWork, owner: str, earlier: list[Message]) -> set[int]:
    """Indices of the messages whose question moderation stopped, with their answers.

    The model must not see them, or a later question could refer to them.
    """
    questions = [message["content"] for message in earlier if message["role"] == "user"]
    verdicts = iter(await work.verdicts(owner, questions))
    stopped, indices = False, set()
    for index, message in enumerate(earlier):
        if message["role"] == "user":
            stopped = work.moderator.stops("input", next(verdicts))
        if stopped:
            indices.add(index)
    return indices


async def fit_to_context(
    served: Served, owner: str, system: str, messages: list[Message], max_tokens: int, hidden: set[int]
) -> tuple[tuple[int, ...], int]:
    """The prompt's ids without the messages in `hidden`, and how many of the oldest turns were dropped to make it fit.

    Raises ApiError if even the last turn is too long.
    """
    if not any(message["role"] == "user" for message in messages):
        raise ApiError(400, "There is no question to answer.", param="messages", code="invalid_value")
    try:
        ids, dropped = await served.encoder.fit(owner, system, messages, sorted(hidden), served.context - max_tokens)
    except InputError as error:
        raise ApiError(400, str(error), code="invalid_value") from None
    if ids is None:
        message = (
            f"This is too long: the model's context is {served.context} tokens, of which {max_tokens} are for the "
            "answer. Shorten the message or the system prompt, or ask for a shorter answer in the settings."
        )
        raise ApiError(400, message, param="messages", code="context_length_exceeded")
    return ids, dropped
