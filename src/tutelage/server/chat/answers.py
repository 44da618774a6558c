"""The chat page's answers: a question in, events out. The turn is recorded if that is allowed.

    POST /chat/answers  ->  {"start"} {"reasoning": text} ... {"text"} ... {"block": html, "rest": text} ... {"done"}

The earlier turns of a recorded chat are read from the database, so the page cannot rewrite them. Any other chat is sent
with the question and leaves no trace. Personal details are redacted before a text is recorded. A conversation longer
than the model's context loses its oldest whole turns; `start` says how many. When the client disconnects, the answer
ends within one step and its text so far is recorded.
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
from tutelage.sampling.distribution import CHAT_MIN_P, CHAT_TEMPERATURE, DistributionConfig
from tutelage.server.chat.consent import require_recording
from tutelage.server.chat.context import fit_to_context, stopped_turns
from tutelage.server.chat.conversations import RecordedTurn, add, as_messages, begin, own, own_message, path_to
from tutelage.server.chat.strings import reasoning_label
from tutelage.server.chat.written import WrittenAnswer, answer_html
from tutelage.server.detokenizer import TextDelta
from tutelage.server.generation import Generation, GenerationEnd, seed_of
from tutelage.server.metrics import count_flags
from tutelage.server.registry import find_model
from tutelage.server.sse import EventStream, event
from tutelage.store.consent import recording_of
from tutelage.store.database import Database
from tutelage.store.tables import ChatMessage, Conversation
from tutelage.text.answer import visible_marks
from tutelage.text.chat import Message
from tutelage.text.reasoning import thinking_after
from tutelage.web.auth import Caller, Page, Store
from tutelage.web.errors import ApiError
from tutelage.web.logs import note
from tutelage.web.pages import language
from tutelage.web.people import writing
from tutelage.web.translations import translations

router = APIRouter(include_in_schema=False)
Text = Annotated[str, StringConstraints(max_length=100_000)]
DEFAULT_SHARE = 4  # by default an answer may take a quarter of the context


class Turn(BaseModel):
    """A message of a chat that is not recorded."""

    role: Annotated[str, StringConstraints(pattern="^(user|assistant)$")]
    content: Text
    reasoning: Text | None = None

    def message(self) -> Message:
        reasoning = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {"role": self.role, "content": self.content} | reasoning


class Settings(BaseModel):
    """The sampling settings of an answer. The defaults are those of `tutelage chat`, measured in docs/results.md."""

    temperature: float = Field(default=CHAT_TEMPERATURE, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=CHAT_MIN_P, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class Ask(BaseModel):
    """The body of a question."""

    conversation: str | None = None  # id of a recorded chat
    keep: bool = False  # start to record this chat
    question: str | None = None  # in a recorded chat: answer this message again
    parent: str | None = None  # in a recorded chat: the message before the new question
    messages: list[Turn] = Field(min_length=1, max_length=2_000)  # ends with the question
    model: str
    system: Text = ""
    settings: Settings = Settings()
    compare: bool = False  # generate a second answer for a comparison, with a random served model


@router.post("/chat/answers")
async def answers(request: Request, ask: Ask, caller: Page, database: Store) -> EventStream:
    """Stream one answer."""
    registry = request.app.state.registry
    served = find_model(registry, any_policy(registry) if ask.compare else ask.model)
    writing = PageAnswer(ask, caller, database, served, request.app.state.moderator, request.state.request_id)
    writing.label = reasoning_label(translations(language(request)).gettext)
    await run_in_threadpool(writing.prepare)
    return EventStream(writing.events())


def any_policy(registry: Any) -> str:
    """The name of a random policy, for a comparison."""
    names = [name for name in registry.names() if registry.get(name).kind == "policy"]
    if not names:
        raise ApiError(503, "No model is served.", code="model_not_found")
    return secrets.choice(names)


class PageAnswer:
    """One answer: its prompt, its stream of events, and its record in the database."""

    def __init__(
        self, ask: Ask, caller: Caller, database: Database, served: Any, moderator: Moderator, request_id: str
    ):
        self.ask, self.caller, self.database, self.served = ask, caller, database, served
        self.moderator, self.request_id = moderator, request_id
        self.recorded: RecordedTurn | None = None
        self.reason, self.tokens, self.label = "cancelled", 0, ""
        self.ttft_ms: int | None = None

    def prepare(self) -> None:
        """Read the conversation and fit it into the context. Raises ApiError if the question alone is too long."""
        messages = self.conversation()
        verdicts = self.moderator.check([messages[-1]["content"], self.ask.system])
        count_flags("input", verdicts)
        self.verdict = verdicts[0]  # the question's
        self.refused = any(self.moderator.stops("input", verdict) for verdict in verdicts)
        self.max_tokens = self.ask.settings.max_tokens or max(1, self.served.context // DEFAULT_SHARE)
        hidden = stopped_turns(self.moderator, messages[:-1])
        self.prompt, self.dropped = fit_to_context(self.served, self.ask.system, messages, self.max_tokens, hidden)
        self.written = WrittenAnswer(thinking_after(self.served.tokenizer, self.prompt) == "opened")

    def conversation(self) -> list[Message]:
        """The turns up to the question: of a recorded chat from the database, otherwise as the page sent them."""
        sent: list[Message] = [turn.message() for turn in self.ask.messages]
        if self.ask.conversation is None:
            return sent
        with self.database.read() as session:
            own(session, self.caller.user_id, self.ask.conversation)
            require_recording(session, self.caller.user_id)
            last, role = self.ask.question or self.ask.parent, "user" if self.ask.question else "assistant"
            message = own_message(session, self.caller.user_id, last, role) if last else None
            if message and message.conversation_id != self.ask.conversation:
                raise ApiError(404, "There is no such message.", code="not_found")
            return as_messages(path_to(session, message)) + ([] if self.ask.question else sent[-1:])

    async def events(self) -> AsyncIterator[bytes]:
        """The events of the module's docstring."""
        if self.refused:
            self.reason = "content_filter"
            await run_in_threadpool(self.record_turn)
            yield self.start()
            await self.finish()
            yield self.done()
            return
        began = time.monotonic()
        marks = visible_marks(self.served.tokenizer)
        generation = Generation(self.served, [self.request()], chat=True, moderator=self.moderator, marks=marks)
        async with generation:
            try:
                await run_in_threadpool(self.record_turn)
                yield self.start()
                async for _, item in generation:
                    if isinstance(item, TextDelta):
                        self.ttft_ms = self.ttft_ms or round(1000 * (time.monotonic() - began))
                        self.tokens = generation.completion_tokens
                        for line in self.written.feed(item.text):
                            yield line
                    elif isinstance(item, GenerationEnd):
                        self.reason = item.reason
                        for line in self.written.feed("", final=True):
                            yield line
            finally:
                note(model=self.served.name, prompt_tokens=len(self.prompt), completion_tokens=self.tokens)
                await self.finish()
        yield self.done()

    def request(self) -> requests.Request:
        """The engine's request for this answer."""
        settings, tokenizer = self.ask.settings, self.served.tokenizer
        return requests.Request(
            prompt=self.prompt,
            max_new_tokens=self.max_tokens,
            sampling=DistributionConfig(temperature=settings.temperature, top_p=settings.top_p, min_p=settings.min_p),
            seed=seed_of(None if self.ask.compare else settings.seed, 0),
            stop_ids=frozenset({*tokenizer.end_ids, tokenizer.end_of_text_id}),
            owner=self.caller.user_id,
            adapter=self.served.adapter,
        )

    def start(self) -> bytes:
        """The first event: the model, the number of dropped turns, and the ids of a recorded chat."""
        about: dict[str, Any] = {"model": self.served.name, "dropped": self.dropped}
        if self.recorded:
            chat = {"id": self.recorded.conversation.id, "title": self.recorded.conversation.title}
            about |= {"conversation": chat, "question": self.recorded.question, "answer": self.recorded.answer}
        return event({"start": about})

    def done(self) -> bytes:
        """The last event."""
        html = answer_html(self.written.text, self.written.reasoning, self.label)
        return event({"done": {"finish_reason": self.reason, "tokens": self.tokens, "html": html}})

    def record_turn(self) -> None:
        """Record the question and an empty answer, in a recorded chat or in a new one that is to be recorded."""
        ask = self.ask
        if ask.conversation is None and not (ask.keep and len(ask.messages) == 1):
            return
        self.database.check_room()
        text, redacted = redact(ask.messages[-1].content)
        with writing(self.database, self.caller.user_id) as session:
            if ask.conversation is not None:
                chat = own(session, self.caller.user_id, ask.conversation)
            elif recording_of(session, self.caller.user_id).on:
                chat = begin(session, self.caller.user_id, text)
            else:
                return
            question = ask.question
            if question is None:
                checks = {"moderation": self.verdict, "redacted": dict(redacted)}
                question = add(session, chat, ask.parent, "user", text, **checks).id
            self.recorded = RecordedTurn(chat, question, self.empty_answer(session, chat, question).id)

    def empty_answer(self, session: Session, chat: Conversation, question: str) -> ChatMessage:
        """Add the answer's row, still without text. The chat's settings become those of this answer."""
        settings, (system, _) = self.ask.settings.model_dump(exclude_none=True), redact(self.ask.system)
        chat.model_id, chat.system, chat.settings = self.ask.model, system, settings
        columns: dict[str, Any] = {
            "model_id": self.served.name,
            "fingerprint": self.served.fingerprint,
            "params": settings | {"max_tokens": self.max_tokens, "system": system},
            "prompt_tokens": len(self.prompt),
            "dropped_turns": self.dropped,
            "request_id": self.request_id,
        }
        return add(session, chat, question, "assistant", "", selected=not self.ask.compare, **columns)

    async def finish(self) -> None:
        """Record the answer, even if the client has disconnected and this task is being cancelled."""
        if self.recorded:
            await asyncio.shield(asyncio.ensure_future(run_in_threadpool(self.record_answer)))

    def record_answer(self) -> None:
        assert self.recorded
        self.written.feed("", final=True)
        text, redacted = redact(self.written.text)
        reasoning, also_redacted = redact(self.written.reasoning)
        verdict = self.moderator.check([self.written.text])[0]
        with writing(self.database, self.caller.user_id) as session:
            row = session.get(ChatMessage, self.recorded.answer)
            if row is None:
                return  # the chat was deleted meanwhile
            if self.ask.compare and self.reason == "cancelled":
                session.delete(row)  # an unfinished answer cannot be compared
                return
            row.content, row.redacted, row.moderation = text, dict(redacted + also_redacted), verdict
            row.reasoning = reasoning or None
            row.finish_reason, row.completion_tokens, row.ttft_ms = self.reason, self.tokens, self.ttft_ms
