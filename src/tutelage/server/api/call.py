"""One request for answers, of either kind: planned, within its key's limits and the engine's, whole or as a stream."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, ClassVar
from urllib.parse import quote

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.server.api.choices import Answer
from tutelage.server.api.requests import Plan
from tutelage.server.api.schemas import Sampled
from tutelage.server.generation import Generation
from tutelage.server.registry import find_model
from tutelage.server.sse import EventStream, answer_or_gone
from tutelage.store.ids import new_id
from tutelage.web.auth import Caller
from tutelage.web.logs import note


async def planned(plan: Callable[..., Plan], request: Request, body: Sampled, caller: Caller) -> Plan:
    """What the call makes of the model. Raises ApiError for what cannot be followed."""
    body.refuse_unsupported()
    state = request.app.state
    served = find_model(state.registry, body.model)
    return await run_in_threadpool(plan, served, body, caller.user_id, state.moderator)


class Call(ABC):
    """Its head and its answers as they grow."""

    chat: ClassVar[bool]

    def __init__(self, request: Request, body: Sampled, caller: Caller, plan: Plan, prefix: str, answers: int):
        assert caller.key
        self.request, self.body, self.key, self.plan = request, body, caller.key, plan
        self.table = plan.served.table
        self.answers = [Answer.refused() if plan.refused else Answer() for _ in range(answers)]
        self.head: dict[str, Any] = {
            "id": new_id(prefix), "created": int(time.time()), "model": body.model,
            "system_fingerprint": plan.served.fingerprint,
        }  # fmt: skip
        self.headers = {"x-ignored-params": ", ".join(map(quote, body.ignored()))} if body.ignored() else {}
        note(model=body.model, **({"ignored": body.ignored()} if body.ignored() else {}))

    async def respond(self) -> Response:
        """The answers, whole or as they are written."""
        if not self.body.stream:
            return await answer_or_gone(self.request, self.whole())
        stack = await self.start()
        return EventStream(self.events(stack), self.headers)

    @abstractmethod
    async def whole(self) -> Response:
        """All answers in one piece."""

    @abstractmethod
    def events(self, stack: AsyncExitStack) -> AsyncIterator[bytes]:
        """Server-sent events; the stack is left at their end."""

    async def start(self) -> AsyncExitStack:
        """Hand it to the engine; what is returned ends it. Raises ApiError beyond the limits."""
        stack, state = AsyncExitStack(), self.request.app.state
        self.spent = stack.enter_context(state.limits.generation(self.key, self.plan.most_tokens))
        generation = Generation(
            self.plan.served, self.plan.requests, self.plan.stop, chat=self.chat, moderator=state.moderator
        )
        try:
            self.generation = await stack.enter_async_context(generation)
        except BaseException:
            await stack.aclose()
            raise
        stack.callback(self.settle)
        return stack

    def settle(self) -> None:
        """Tell the key's limits what it came to, and the log."""
        read, written = sum(map(len, self.plan.prompts)), self.generation.completion_tokens
        self.spent.tokens = read + written
        note(prompt_tokens=read, completion_tokens=written)

    async def finish(self) -> None:
        """Wait for all answers."""
        async for index, happening in self.generation:
            self.answers[index].add(happening)
