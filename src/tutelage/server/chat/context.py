"""What a model sees of a conversation: the turns that may be shown to it, as many of the newest as fit its context.

turns  ->  without those whose question was stopped  ->  without the oldest  ->  ids of the prompt
"""

import bisect
from typing import Any

from tutelage.errors import InputError
from tutelage.moderation.moderator import Moderator
from tutelage.text.chat import Message, encode_chat
from tutelage.web.errors import ApiError


def withheld(moderator: Moderator, earlier: list[Message]) -> set[int]:
    """Places of the turns whose question was not answered: asked again in another way, the model must not see it."""
    stopped, places = False, set()
    for place, message in enumerate(earlier):
        if message["role"] == "user":
            stopped = moderator.stops("input", moderator.check([message["content"]])[0])
        if stopped:
            places.add(place)
    return places


def fitted(
    served: Any, system: str, messages: list[Message], longest: int, unseen: set[int]
) -> tuple[tuple[int, ...], int]:
    """The prompt's ids, and how many of the oldest turns had to go. Raises ApiError when the last is too long."""
    first = [place for place, message in enumerate(messages) if message["role"] == "user"]
    head: list[Message] = [{"role": "system", "content": system}] if system else []

    def ids(dropped: int) -> tuple[int, ...]:
        start = first[dropped] if dropped else 0
        kept = [message for place, message in enumerate(messages) if place >= start and place not in unseen]
        try:
            return tuple(encode_chat(served.tokenizer, head + kept, add_generation_prompt=True).ids)
        except InputError as error:
            raise ApiError(400, str(error), code="invalid_value") from None

    if not first:
        raise ApiError(400, "There is no question to answer.", param="messages", code="invalid_value")
    room = served.context - longest
    dropped = bisect.bisect_left(range(len(first)), True, key=lambda count: len(ids(count)) <= room)
    if dropped == len(first):
        message = (
            f"This is too long: the model's context is {served.context} tokens, {longest} of them are for the answer. "
            "Shorten the message or the system prompt, or ask for a shorter answer in the settings."
        )
        raise ApiError(400, message, param="messages", code="context_length_exceeded")
    return ids(dropped), dropped
