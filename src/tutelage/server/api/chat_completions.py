"""POST /v1/chat/completions: a conversation -> one or more completions (OpenAI's choices), whole or as a stream.

Follows OpenAI's API. One difference: log-probabilities are the model's own, before penalties, bias, temperature and
filters.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.server.api.call import Call, make_plan, refuse_large
from tutelage.server.api.chat_schemas import ChatRequest
from tutelage.server.api.choices import REFUSAL, Choice, all_logprobs, chat_logprobs, usage
from tutelage.server.api.requests import Plan, plan_chat
from tutelage.server.api.schemas import DOCUMENTED
from tutelage.server.api.stored_completions import store_completion
from tutelage.server.detokenizer import TextDelta
from tutelage.server.generation import GenerationEnd
from tutelage.server.sse import event
from tutelage.text.pieces import CallBegin, Content, Piece, Reasoning
from tutelage.text.tool_syntax import MISTRAL
from tutelage.web.auth import Caller, Inference
from tutelage.web.errors import JSON
from tutelage.web.json_pieces import in_turns

router = APIRouter(responses=DOCUMENTED, tags=["chat"])


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(request: Request, body: ChatRequest, caller: Inference) -> Response:
    """Answer a conversation."""
    call = ChatCall(request, body, caller, await make_plan(plan_chat, request, body, caller))
    if call.stored:
        request.app.state.database.check_room()
    return await call.respond()


class ChatCall(Call):
    """One chat call: n choices for one conversation."""

    chat = True
    body: ChatRequest

    def __init__(self, request: Request, body: ChatRequest, caller: Caller, plan: Plan):
        super().__init__(request, body, caller, plan, "chatcmpl-", body.n or 1)
        self.stored = self.key.store_default if body.store is None else body.store
        if self.stored and body.logprobs:
            refuse_large(plan)

    async def whole(self) -> Response:
        async with await self.start():
            await self.finish()
        completion = await self.completion()
        if self.stored:
            await self.store(completion)
        return JSON(await in_turns(completion), headers=self.headers)

    async def completion(self) -> dict[str, Any]:
        """The finished completion as OpenAI's object."""
        choices: list[dict[str, Any]] = [
            {
                "index": index,
                "message": self.message(choice),
                "logprobs": await all_logprobs(choice.entries, self.table) if self.body.logprobs else None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(self.choices)
        ]
        tokens = usage(self.plan.prompts, self.choices)
        return {"object": "chat.completion", **self.head, "choices": choices, "usage": tokens}

    def new_choice(self) -> Choice:
        syntax = self.plan.format.syntax
        return Choice(reader=self.plan.format.reader(), short_ids=syntax is not None and syntax.begin == MISTRAL.begin)

    def message(self, choice: Choice) -> dict[str, Any]:
        """A choice's message. Its content is null if the answer consists of calls."""
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": choice.content or (None if calls else ""),
            "refusal": REFUSAL if self.plan.refused else None,
            "annotations": [],
        }
        message |= {"reasoning_content": choice.reasoning} if choice.reasoning else {}
        return message | ({"tool_calls": calls} if calls else {})

    async def events(self, stack: AsyncExitStack) -> AsyncIterator[bytes]:
        """First the roles of all choices, then text as it comes, one end per choice, and last the usage."""
        async with stack:
            for index in range(len(self.choices)):
                yield self.chunk(index, {"role": "assistant", "content": None if self.plan.format.syntax else ""})
            for index, choice in enumerate(self.choices if self.plan.refused else []):
                yield self.chunk(index, {"refusal": REFUSAL})
                yield self.chunk(index, {}, reason=choice.reason)
            async for index, item, pieces in self.growing():
                text = item if isinstance(item, TextDelta) else None
                for piece in pieces:
                    yield self.chunk(index, delta_of(piece, self.choices[index]), text)
                    text = None  # the log-probabilities come with the first piece
                if text and text.entries and self.body.logprobs:
                    yield self.chunk(index, {}, text)
                if isinstance(item, GenerationEnd):
                    yield self.chunk(index, {}, reason=self.choices[index].reason)
            if self.stored:
                await self.store(await self.completion())
            if self.body.wants_usage:
                yield event(self.chunk_head() | {"choices": [], "usage": usage(self.plan.prompts, self.choices)})
            yield b"data: [DONE]\n\n"

    def chunk_head(self) -> dict[str, Any]:
        return {"object": "chat.completion.chunk", **self.head}

    def chunk(
        self, index: int, delta: dict[str, Any], text: TextDelta | None = None, reason: str | None = None
    ) -> bytes:
        """One event: OpenAI's `delta` of a choice, with log-probabilities if `text` is given and they are requested."""
        logprobs = chat_logprobs(text.entries, self.table) if text and self.body.logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event(self.chunk_head() | {"choices": [choice]} | ({"usage": None} if self.body.wants_usage else {}))

    async def store(self, completion: dict[str, Any]) -> None:
        body = self.body.model_dump(mode="json", exclude_unset=True)
        await run_in_threadpool(store_completion, self.request.app.state.database, self.key.id, body, completion)


def delta_of(piece: Piece, choice: Choice) -> dict[str, Any]:
    """OpenAI's delta: id, type and name of a call come once, at its beginning, and its arguments in pieces."""
    if isinstance(piece, Reasoning):
        return {"reasoning_content": piece.text}
    if isinstance(piece, Content):
        return {"content": piece.text}
    call: dict[str, Any] = {"index": piece.index}
    if isinstance(piece, CallBegin):
        call |= {"id": choice.calls[piece.index].id, "type": "function"}
        call["function"] = {"name": piece.name, "arguments": ""}
    else:
        call["function"] = {"arguments": piece.text}
    return {"tool_calls": [call]}
