"""POST /v1/responses: OpenAI's Responses API, for text, structured output and function calls, whole or as a stream.

A response is one chat answer in other words: the body becomes a chat request (`response_schemas.py`), and the pieces of
the answer become output items (`response_output.py`). Limits, moderation and grammars are those of chat completions.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.server.api.call import Call, make_plan, refuse_large
from tutelage.server.api.choices import Choice, chat_logprobs, usage
from tutelage.server.api.requests import Plan, plan_chat
from tutelage.server.api.response_output import Event, ResponseOutput
from tutelage.server.api.response_schemas import ResponseRequest, in_terms_of_responses
from tutelage.server.api.schemas import DOCUMENTED
from tutelage.server.api.stored_responses import items_before, store_response
from tutelage.server.detokenizer import TextDelta, TokenEntry
from tutelage.server.sse import named_event
from tutelage.store.database import StorageError
from tutelage.text.pieces import Content, Piece
from tutelage.web.auth import Caller, Inference
from tutelage.web.errors import JSON, ApiError, refusal
from tutelage.web.json_pieces import in_turns
from tutelage.web.logs import note

router = APIRouter(responses=DOCUMENTED, tags=["responses"])
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@router.post("/v1/responses", response_model=None)
async def responses(request: Request, body: ResponseRequest, caller: Inference) -> Response:
    """Answer a conversation."""
    body.refuse_unsupported()
    database = request.app.state.database
    earlier = await run_in_threadpool(items_before, database, caller.user_id, body.previous_response_id)
    try:
        plan = await make_plan(plan_chat, request, body.chat(earlier), caller)
    except ApiError as error:
        raise in_terms_of_responses(error) from None
    call = ResponseCall(request, body, caller, plan)
    if call.stored:
        database.check_room()
    return await call.respond()


class ResponseCall(Call):
    """One call: one answer."""

    chat = True
    body: ResponseRequest

    def __init__(self, request: Request, body: ResponseRequest, caller: Caller, plan: Plan):
        super().__init__(request, body, caller, plan, "resp_", 1)
        self.stored = self.key.store_default if body.store is None else body.store
        if self.stored and body.wants_logprobs:
            refuse_large(plan)
        self.output = ResponseOutput()
        self.pending: list[TokenEntry] = []  # tokens whose text has not been passed on
        self.sent = 0

    def new_choice(self) -> Choice:
        return Choice(reader=self.plan.format.reader())

    async def whole(self) -> Response:
        stack = await self.start()
        async for _ in self.answer(stack):
            pass
        response = self.response(self.status)
        await self.store(response)
        return JSON(await in_turns(response), headers=self.headers)

    async def events(self, stack: AsyncExitStack) -> AsyncIterator[bytes]:
        """Created, in progress, the events of the items, and at last completed, incomplete or failed."""
        try:
            for status in ("created", "in_progress"):
                yield self.numbered({"type": f"response.{status}", "response": self.response("in_progress")})
            async with aclosing(self.answer(stack)) as events:
                async for event in events:
                    yield self.numbered(event)
            response = self.response(self.status)
            await self.store(response)
            yield self.numbered({"type": f"response.{self.status}", "response": response})
        except (ApiError, StorageError) as error:
            failure = refusal(error)
            note(error=failure.reason)
            cause = {"code": "server_error", "message": failure.body["message"]}
            yield self.numbered({"type": "response.failed", "response": self.response("failed") | {"error": cause}})

    def numbered(self, event: Event) -> bytes:
        """An event with its number, as bytes."""
        self.sent += 1
        return named_event(event["type"], event | {"sequence_number": self.sent - 1})

    async def answer(self, stack: AsyncExitStack) -> AsyncGenerator[Event]:
        """Generate the answer. Yields the events of its items. Closes the stack at the end."""
        async with stack:
            for event in self.output.refuse() if self.plan.refused else ():
                yield event
            async for _, item, pieces in self.growing():
                self.pending += item.entries if isinstance(item, TextDelta) else ()
                for piece in pieces:
                    for event in self.output.add(piece, self.logprobs(piece)):
                        yield event
            for event in self.output.close("completed" if self.status == "completed" else "incomplete"):
                yield event

    def logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        """The log-probabilities of the tokens of a piece, if it is text of the message."""
        entries, self.pending = self.pending, []
        if not (isinstance(piece, Content) and self.body.wants_logprobs):
            return []
        content: list[dict[str, Any]] = chat_logprobs(entries, self.table)["content"]
        return content

    @property
    def status(self) -> str:
        """The status of the finished response."""
        return "incomplete" if self.choices[0].reason in INCOMPLETE else "completed"

    def response(self, status: str) -> dict[str, Any]:
        """OpenAI's object."""
        body, choice, done = self.body, self.choices[0], status in ("completed", "incomplete")
        reason = INCOMPLETE.get(choice.reason) if done else None
        return {
            "id": self.head["id"],
            "object": "response",
            "created_at": self.head["created"],
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": list(self.output.items),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "store": self.stored,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": body.format_sent},
            "tool_choice": body.choice_sent,
            "tools": [tool.sent for tool in body.tools or []],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": response_usage(usage(self.plan.prompts, self.choices)) if done else None,
            "metadata": body.metadata or {},
        }

    async def store(self, response: dict[str, Any]) -> None:
        """Store the response if the request says so, or the key does by default."""
        if self.stored:
            request = self.body.model_dump(mode="json", exclude_unset=True)
            request["input"] = [item.model_dump(mode="json", exclude_unset=True) for item in self.body.items]
            await run_in_threadpool(store_response, self.request.app.state.database, self.key.id, request, response)


def response_usage(tokens: dict[str, Any]) -> dict[str, Any]:
    """The usage of a chat completion in the shape of the Responses API."""
    return {
        "input_tokens": tokens["prompt_tokens"],
        "input_tokens_details": tokens["prompt_tokens_details"] | {"cache_write_tokens": 0},
        "output_tokens": tokens["completion_tokens"],
        "output_tokens_details": tokens["completion_tokens_details"],
        "total_tokens": tokens["total_tokens"],
    }
