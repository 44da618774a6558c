"""One API call that generates completions, shared by the chat and the plain route.

request -> Plan (requests.py) -> rate limits -> Generation -> choices, as one response or as a stream
"""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, ClassVar
from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response

from tutelage.server.api.choices import Choice
from tutelage.server.api.requests import Plan
from tutelage.server.api.schemas import SamplingRequest
from tutelage.server.generation import Generation, GenerationEvent
from tutelage.server.registry import find_model
from tutelage.server.sse import EventStream, respond_until_disconnect
from tutelage.store.ids import new_id
from tutelage.text.pieces import Piece
from tutelage.web.auth import Caller
from tutelage.web.errors import ApiError
from tutelage.web.logs import note

MOST_STORED = 50_000  # log-probabilities, about 3 MB of JSON


async def make_plan(
    plan: Callable[..., Awaitable[Plan]], request: Request, body: SamplingRequest, caller: Caller
) -> Plan:
    """Check the body and make its plan with `plan_chat` or `plan_completion`. Raises ApiError if that is impossible."""
    assert caller.key
    body.refuse_unsupported()
    state = request.app.state
    served = find_model(state.registry, body.model)
    with state.limits.attempt(caller.key, body.characters):
        return await plan(served, body, caller.queue, state.text_work)


def refuse_large(plan: Plan) -> None:
    """Raise ApiError for a completion that takes long to store, and to read again and again."""
    if sum(request.max_new_tokens * (request.top_logprobs + 1) for request in plan.requests) > MOST_STORED:
        message = (
            f"Completions that may have more than {MOST_STORED} log-probabilities are not stored. Ask for fewer (n, "
            "max_completion_tokens, top_logprobs), or send store: false."
        )
        raise ApiError(400, message, param="store", code="invalid_value")


class Call(ABC):
    """The common part of a chat and a plain call: the fields of its response, and its choices as they grow."""

    chat: ClassVar[bool]

    def __init__(self, request: Request, body: SamplingRequest, caller: Caller, plan: Plan, prefix: str, choices: int):
        assert caller.key
        self.request, self.body, self.key, self.plan = request, body, caller.key, plan
        self.table = plan.served.table
        self.choices = [Choice.refused() if plan.refused else self.new_choice() for _ in range(choices)]
        self.head: dict[str, Any] = {
            "id": new_id(prefix),
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": plan.served.fingerprint,
        }
        self.headers = {"x-ignored-params": ", ".join(map(quote, body.ignored()))} if body.ignored() else {}
        note(model=body.model, **({"ignored": body.ignored()} if body.ignored() else {}))

    async def respond(self) -> Response:
        """The response, whole or as a stream."""
        if not self.body.stream:
            return await respond_until_disconnect(self.request, self.whole())
        stack = await self.start()
        return EventStream(self.events(stack), self.headers)

    @abstractmethod
    async def whole(self) -> Response:
        """Generate all choices, then respond."""

    @abstractmethod
    def events(self, stack: AsyncExitStack) -> AsyncIterator[bytes]:
        """The choices as server-sent events. Closes the stack at the end."""

    async def start(self) -> AsyncExitStack:
        """Start generating. Closing the returned stack ends it. Raises ApiError beyond the limits of key or engine."""
        stack, state = AsyncExitStack(), self.request.app.state
        self.spent = stack.enter_context(state.limits.generation(self.key, self.plan.most_tokens))
        generation = Generation(
            self.plan.served,
            self.plan.requests,
            self.plan.stop,
            chat=self.chat,
            moderator=state.text_work.moderator,
            marks=self.plan.format.marks,
        )
        try:
            self.generation = await stack.enter_async_context(generation)
        except BaseException:
            await stack.aclose()
            raise
        stack.callback(self.settle)
        return stack

    def settle(self) -> None:
        """Report the tokens used to the key's limits and to the log."""
        read, written = sum(map(len, self.plan.prompts)), self.generation.completion_tokens
        self.spent.tokens = read + written
        note(prompt_tokens=read, completion_tokens=written)

    def new_choice(self) -> Choice:
        """A choice that has not begun."""
        return Choice()

    async def growing(self) -> AsyncIterator[tuple[int, GenerationEvent, list[Piece]]]:
        """The events of all choices, each with the index of its choice and what it adds to the answer."""
        async for index, event in self.generation:
            pieces = self.choices[index].add(event)
            if self.choices[index].complete:
                self.generation.end(index)
            yield index, event, pieces

    async def finish(self) -> None:
        """Wait until all choices are complete."""
        async for _ in self.growing():
            pass
