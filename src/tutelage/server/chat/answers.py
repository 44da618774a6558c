"""The chat page's answers: a question in, events out, each turn kept where that is allowed.

    POST /chat/answers  ->  {"start": ...}  {"text": ...} ...  {"block": html, "rest": text} ...  {"done": ...}

A kept chat is read from the store, so that what the page sends cannot rewrite it; any other comes with the question and
leaves no trace. What identifies a person is replaced before it is kept. A conversation longer than the model's context
loses its oldest whole turns, and `start` says how many. When the reader goes away, the answer ends within a step and
what there is of it is kept.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from tutelage.data.privacy import redact
from tutelage.engine import requests
from tutelage.moderation.moderator import Moderator
from tutelage.sampling.distribution import DistributionConfig
from tutelage.server.chat.consent import must_keep
from tutelage.server.chat.context import fitted, withheld
from tutelage.server.chat.conversations import KeptTurn, add, as_messages, begin, own, own_message, path_to
from tutelage.server.detokenizer import TextDelta
from tutelage.server.generation import Ended, Generation, seed_of
from tutelage.server.metrics import count_flags
from tutelage.server.registry import find_model
from tutelage.server.sse import EventStream, event
from tutelage.store.consent import recording_of
from tutelage.store.database import Database
from tutelage.store.tables import ChatMessage, Conversation
from tutelage.text.chat import Message
from tutelage.web.auth import Caller, Page, Store
from tutelage.web.errors import ApiError
from tutelage.web.logs import note
from tutelage.web.pages import markdown
from tutelage.web.people import writing

router = APIRouter(include_in_schema=False)
Text = Annotated[str, StringConstraints(max_length=100_000)]
LONGEST_SHARE = 4  # without a wish, an answer may take a quarter of the context


class Turn(BaseModel):
    """A message of a chat that is not kept."""

    role: Annotated[str, StringConstraints(pattern="^(user|assistant)$")]
    content: Text


class Settings(BaseModel):
    """How the answer is sampled."""

    temperature: float = Field(default=0.8, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class Ask(BaseModel):
    """What the page asks for."""

    conversation: str | None = None  # a kept chat
    keep: bool = False  # begin to keep this one
    question: str | None = None  # of a kept chat: answer this message again
    parent: str | None = None  # of a kept chat: the message that the new question follows
    messages: list[Turn] = Field(min_length=1, max_length=2_000)  # ends with the question
    model: str
    system: Text = ""
    settings: Settings = Settings()
    compare: bool = False  # a second answer, to be held against the first; by any model that is served


@router.post("/chat/answers")
async def answers(request: Request, ask: Ask, caller: Page, database: Store) -> EventStream:
    """One answer, as it is written."""
    registry = request.app.state.registry
    served = find_model(registry, any_policy(registry) if ask.compare else ask.model)
    writing = PageAnswer(ask, caller, database, served, request.app.state.moderator, request.state.request_id)
    await run_in_threadpool(writing.prepare)
    return EventStream(writing.events())


def any_policy(registry: Any) -> str:
    """A model to compare with, any of those that write answers."""
    names = [name for name in registry.names() if registry.get(name).kind == "policy"]
    if not names:
        raise ApiError(503, "No model is served.", code="model_not_found")
    return secrets.choice(names)


class PageAnswer:
    """One answer from its question to its place in the store."""

    def __init__(
        self, ask: Ask, caller: Caller, database: Database, served: Any, moderator: Moderator, request_id: str
    ):
        self.ask, self.caller, self.database, self.served = ask, caller, database, served
        self.moderator, self.request_id = moderator, request_id
        self.kept: KeptTurn | None = None
        self.text, self.rendered, self.reason, self.tokens = "", 0, "cancelled", 0
        self.ttft_ms: int | None = None

    def prepare(self) -> None:
        """Read the conversation and fit it into the context. Raises ApiError when even the question is too long."""
        messages = self.conversation()
        self.verdict, of_system = self.moderator.check([messages[-1]["content"], self.ask.system])
        count_flags("input", (self.verdict, of_system))
        self.refused = any(self.moderator.stops("input", verdict) for verdict in (self.verdict, of_system))
        self.longest = self.ask.settings.max_tokens or max(1, self.served.context // LONGEST_SHARE)
        unseen = withheld(self.moderator, messages[:-1])
        self.prompt, self.dropped = fitted(self.served, self.ask.system, messages, self.longest, unseen)

    def conversation(self) -> list[Message]:
        """The turns up to the question: the store's for a kept chat, else the page's own."""
        given: list[Message] = [turn.model_dump() for turn in self.ask.messages]
        if self.ask.conversation is None:
            return given
        with self.database.read() as session:
            own(session, self.caller.user_id, self.ask.conversation)
            must_keep(session, self.caller.user_id)
            last, role = self.ask.question or self.ask.parent, "user" if self.ask.question else "assistant"
            found = own_message(session, self.caller.user_id, last, role) if last else None
            if found and found.conversation_id != self.ask.conversation:
                raise ApiError(404, "There is no such message.", code="not_found")
            return as_messages(path_to(session, found)) + ([] if self.ask.question else given[-1:])

    async def events(self) -> AsyncIterator[bytes]:
        """See the module's opening."""
        if self.refused:
            self.reason = "content_filter"
            await run_in_threadpool(self.keep_turn)
            yield self.start()
            await self.finish()
            yield self.done()
            return
        began = time.monotonic()
        async with Generation(self.served, [self.request()], chat=True, moderator=self.moderator) as generation:
            try:
                await run_in_threadpool(self.keep_turn)
                yield self.start()
                async for _, happening in generation:
                    if isinstance(happening, TextDelta):
                        self.ttft_ms = self.ttft_ms or round(1000 * (time.monotonic() - began))
                        self.tokens = generation.completion_tokens
                        for line in self.released(happening.text):
                            yield line
                    elif isinstance(happening, Ended):
                        self.reason = happening.reason
            finally:
                note(model=self.served.name, prompt_tokens=len(self.prompt), completion_tokens=self.tokens)
                await self.finish()
        yield self.done()

    def request(self) -> requests.Request:
        """The answer as the engine wants it asked for."""
        wish, tokenizer = self.ask.settings, self.served.tokenizer
        return requests.Request(
            prompt=self.prompt,
            max_new_tokens=self.longest,
            sampling=DistributionConfig(temperature=wish.temperature, top_p=wish.top_p),
            seed=seed_of(None if self.ask.compare else wish.seed, 0),
            stop_ids=frozenset({tokenizer.end_of_turn_id, tokenizer.end_of_text_id}),
            owner=self.caller.user_id,
            adapter=self.served.adapter,
        )

    def released(self, text: str) -> list[bytes]:
        """Events for more text; blocks that are finished with it come as HTML."""
        if not text:
            return []
        self.text += text
        lines = [event({"text": text})]
        end = self.rendered + finished_blocks(self.text[self.rendered :])  # the rest begins outside of any code
        if end > self.rendered:
            self.rendered = end
            lines.append(event({"block": str(markdown(self.text[:end])), "rest": self.text[end:]}))
        return lines

    def start(self) -> bytes:
        about: dict[str, Any] = {"model": self.served.name, "dropped": self.dropped}
        if self.kept:
            chat = {"id": self.kept.conversation.id, "title": self.kept.conversation.title}
            about |= {"conversation": chat, "question": self.kept.question, "answer": self.kept.answer}
        return event({"start": about})

    def done(self) -> bytes:
        html = str(markdown(self.text))
        return event({"done": {"finish_reason": self.reason, "tokens": self.tokens, "html": html}})

    def keep_turn(self) -> None:
        """The question and an empty answer, in a kept chat or in one that is to be kept from here on."""
        ask = self.ask
        if ask.conversation is None and not (ask.keep and len(ask.messages) == 1):
            return
        self.database.check_room()
        said, redacted = redact(ask.messages[-1].content)
        with writing(self.database, self.caller.user_id) as session:
            if ask.conversation is not None:
                chat = own(session, self.caller.user_id, ask.conversation)
            elif recording_of(session, self.caller.user_id).on:
                chat = begin(session, self.caller.user_id, said)
            else:
                return
            question = ask.question
            if question is None:
                checked = {"moderation": self.verdict, "redacted": dict(redacted)}
                question = add(session, chat, ask.parent, "user", said, **checked).id
            self.kept = KeptTurn(chat, question, self.empty_answer(session, chat, question).id)

    def empty_answer(self, session: Session, chat: Conversation, question: str) -> ChatMessage:
        """Where the answer will stand, with how it is sampled; the chat goes on with these settings."""
        settings, (system, _) = self.ask.settings.model_dump(exclude_none=True), redact(self.ask.system)
        chat.model_id, chat.system, chat.settings = self.ask.model, system, settings
        return add(
            session, chat, question, "assistant", "", selected=not self.ask.compare, model_id=self.served.name,
            fingerprint=self.served.fingerprint, params=settings | {"max_tokens": self.longest, "system": system},
            prompt_tokens=len(self.prompt), dropped_turns=self.dropped, request_id=self.request_id,
        )  # fmt: skip

    async def finish(self) -> None:
        """Write down what came of the answer, also when the reader has gone and this task is being cancelled."""
        if self.kept:
            await asyncio.shield(asyncio.ensure_future(run_in_threadpool(self.keep_answer)))

    def keep_answer(self) -> None:
        assert self.kept
        text, redacted = redact(self.text)
        verdict = self.moderator.check([self.text])[0]
        with writing(self.database, self.caller.user_id) as session:
            row = session.get(ChatMessage, self.kept.answer)
            if row is None:
                return  # the chat was deleted meanwhile
            if self.ask.compare and self.reason == "cancelled":
                session.delete(row)  # half an answer is nothing to compare
                return
            row.content, row.redacted, row.moderation = text, dict(redacted), verdict
            row.finish_reason, row.completion_tokens, row.ttft_ms = self.reason, self.tokens, self.ttft_ms


def finished_blocks(text: str) -> int:
    """Where the last finished block of Markdown ends: after a blank line that is in no code fence."""
    end, fenced, place = 0, False, 0
    for line in text.splitlines(keepends=True):
        place += len(line)
        fenced ^= line.lstrip().startswith("```")
        if not line.strip() and not fenced:
            end = place
    return end
