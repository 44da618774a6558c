"""One request for answers, of either kind: within its key's limits and the engine's, and what all its chunks share."""

import time
from contextlib import AsyncExitStack
from typing import Any

from fastapi import Request

from tutelage.server.answers import Answer
from tutelage.server.generation import Generation, bytes_of_tokens
from tutelage.server.prepare import Plan
from tutelage.server.schemas import Sampled
from tutelage.store.ids import new_id
from tutelage.web.auth import Caller


class Call:
    """Its head and its answers as they grow."""

    def __init__(self, request: Request, body: Sampled, caller: Caller, plan: Plan, prefix: str, answers: int):
        assert caller.key
        self.app, self.key, self.plan = request.app, caller.key, plan
        self.table = bytes_of_tokens(plan.served.words)
        self.answers = [Answer.refused() if plan.refused else Answer() for _ in range(answers)]
        self.head: dict[str, Any] = {
            "id": new_id(prefix), "created": int(time.time()), "model": body.model,
            "system_fingerprint": plan.served.fingerprint,
        }  # fmt: skip
        self.headers = {"x-ignored-params": ", ".join(body.ignored())} if body.ignored() else {}

    async def start(self, *, chat: bool) -> AsyncExitStack:
        """Hand it to the engine; what is returned ends it. Raises ApiError beyond the limits."""
        stack = AsyncExitStack()
        self.spent = stack.enter_context(self.app.state.limits.generation(self.key, self.plan.most_tokens))
        generation = Generation(
            self.plan.served, self.plan.requests, self.plan.stop, chat=chat, moderator=self.app.state.moderator
        )
        try:
            self.generation = await stack.enter_async_context(generation)
        except BaseException:
            await stack.aclose()
            raise
        stack.callback(self.settle)
        return stack

    def settle(self) -> None:
        """Tell the key's limits what it came to."""
        self.spent.tokens = sum(map(len, self.plan.prompts)) + self.generation.completion_tokens

    async def finish(self) -> None:
        """Wait for all answers."""
        async for index, happening in self.generation:
            self.answers[index].add(happening)
