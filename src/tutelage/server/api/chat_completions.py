"""POST /v1/chat/completions: a conversation in, one or more answers out, whole or as they are written.

As OpenAI's API has it; what differs: log-probabilities are the model's own, before penalties, bias and temperature.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.server.api.call import Call, planned
from tutelage.server.api.choices import REFUSAL, chat_logprobs, usage
from tutelage.server.api.requests import Plan, plan_chat
from tutelage.server.api.schemas import DOCUMENTED, ChatRequest
from tutelage.server.api.stored_completions import keep
from tutelage.server.detokenizer import TextDelta
from tutelage.server.sse import event
from tutelage.web.auth import Caller, Inference
from tutelage.web.errors import JSON

router = APIRouter(responses=DOCUMENTED, tags=["chat"])


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: Request, body: ChatRequest, caller: Inference) -> Response:
    """Answer a conversation."""
    call = ChatCall(request, body, caller, await planned(plan_chat, request, body, caller))
    if call.stored:
        request.app.state.database.check_room()
    return await call.respond()


class ChatCall(Call):
    """One chat: n answers to one conversation."""

    chat = True
    body: ChatRequest

    def __init__(self, request: Request, body: ChatRequest, caller: Caller, plan: Plan):
        super().__init__(request, body, caller, plan, "chatcmpl-", body.n or 1)
        self.stored = self.key.store_default if body.store is None else body.store

    async def whole(self) -> Response:
        async with await self.start():
            await self.finish()
        completion = self.completion()
        await self.store(completion)
        return JSON(completion, headers=self.headers)

    def completion(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "refusal": REFUSAL if self.plan.refused else None,
            "annotations": [],
        }
        choices: list[dict[str, Any]] = [
            {
                "index": index,
                "message": message | {"content": answer.text},
                "logprobs": chat_logprobs(answer.entries, self.table) if self.body.logprobs else None,
                "finish_reason": answer.reason,
            }
            for index, answer in enumerate(self.answers)
        ]
        bill = usage(self.plan.prompts, self.answers)
        return {"object": "chat.completion", **self.head, "choices": choices, "usage": bill}

    async def events(self, stack: AsyncExitStack) -> AsyncIterator[bytes]:
        """The roles in order, then the texts as they come, each end once, the bill last."""
        async with stack:
            for index in range(len(self.answers)):
                yield self.chunk(index, {"role": "assistant", "content": ""})
            for index, answer in enumerate(self.answers if self.plan.refused else []):
                yield self.chunk(index, {"refusal": REFUSAL})
                yield self.chunk(index, {}, reason=answer.reason)
            async for index, happening in self.generation:
                self.answers[index].add(happening)
                if not isinstance(happening, TextDelta):
                    yield self.chunk(index, {}, reason=self.answers[index].reason)
                elif happening.text or (happening.entries and self.body.logprobs):
                    yield self.chunk(index, {"content": happening.text}, happening)
            await self.store(self.completion())
            if self.body.wants_usage:
                yield event(self.chunk_head() | {"choices": [], "usage": usage(self.plan.prompts, self.answers)})
            yield b"data: [DONE]\n\n"

    def chunk_head(self) -> dict[str, Any]:
        return {"object": "chat.completion.chunk", **self.head}

    def chunk(
        self, index: int, delta: dict[str, Any], piece: TextDelta | None = None, reason: str | None = None
    ) -> bytes:
        logprobs = chat_logprobs(piece.entries, self.table) if piece and self.body.logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event(self.chunk_head() | {"choices": [choice]} | ({"usage": None} if self.body.wants_usage else {}))

    async def store(self, completion: dict[str, Any]) -> None:
        """Keep it if the caller asked for that, or its key does so by default."""
        if self.stored:
            asked = self.body.model_dump(mode="json", exclude_none=True)
            await run_in_threadpool(keep, self.request.app.state.database, self.key.id, asked, completion)
