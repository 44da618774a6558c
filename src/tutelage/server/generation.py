"""Answers in progress: the engine's events, from its thread, as text in the event loop.

    async with Generation(served, requests, stop) as answers:  async for index, event in answers: ...

Events of a response: PromptScored, TextDelta (text that will not change) ..., Ended. Leaving the block cancels what is
still running. So do a deadline, which ends responses with "length", the server's shutdown, and unloading the model.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Self

from tutelage.engine.requests import Done, Event, Gone, Handle, Listener, PromptScored, QueueFull, Request, Token
from tutelage.moderation.moderator import Moderator
from tutelage.moderation.stream_filter import StreamFilter
from tutelage.server.detokenizer import Detokenizer, TextDelta
from tutelage.server.metrics import ACTIVE, INTER_TOKEN, REJECTED, TOKENS, TTFT, count_flags
from tutelage.server.registry import Served, no_such_model
from tutelage.web.errors import ApiError

SECONDS = 300.0  # an answer that takes longer ends there

_running: set["Generation"] = set()


@dataclass(frozen=True)
class Ended:
    """The end of one answer. `reason` is OpenAI's: stop, length or content_filter."""

    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


Happening = PromptScored | TextDelta | Ended


def _judges(moderator: Moderator | None) -> Callable[[], StreamFilter | None]:
    """Makes what watches over an answer's text, or nothing where the policy lets all answers pass."""
    if moderator is None or moderator.config.moderate not in ("output", "both"):
        return lambda: None
    return lambda: StreamFilter(moderator)


class Generation:
    """See the module's opening."""

    def __init__(
        self,
        served: Served,
        requests: Sequence[Request],
        stop: Sequence[str] = (),
        *,
        chat: bool = False,
        moderator: Moderator | None = None,
    ):
        self._served, self._requests = served, requests
        strip = chat and not served.tokenizer.byte_level
        judge = _judges(moderator)
        self._pieces = [Detokenizer(served.table, stop, strip, judge()) for _ in requests]
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._handles: list[Handle] = []
        self._stopping = self._late = False
        self._started: float | None = None
        self._last: list[float | None] = [None] * len(requests)  # when each answer's last token came

    async def __aenter__(self) -> Self:
        """Hand all to the engine. Raises ApiError when it has too much to do already, or could never do so much."""
        self._loop = asyncio.get_running_loop()
        engine = self._served.engine
        assert engine, "only policies write"
        if len(self._requests) > engine.most:
            message = f"This asks for {len(self._requests)} answers at once; at most {engine.most} are possible here."
            raise ApiError(400, message, code="invalid_value")
        try:
            for index, request in enumerate(self._requests):
                self._handles.append(engine.submit(request, self._listener(index)))
        except QueueFull:
            self.cancel()
            REJECTED.labels("engine_overloaded").inc()
            message = "Too many requests are waiting for the model. Try again soon."
            raise ApiError(503, message, code="engine_overloaded", headers={"retry-after": "1"}) from None
        except Gone:
            self.cancel()
            raise no_such_model(self._served.name) from None
        self._deadline = self._loop.call_later(SECONDS, self._time_out)
        _running.add(self)
        ACTIVE.inc(len(self._requests))
        self._started = time.monotonic()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._deadline.cancel()
        self.cancel()
        _running.discard(self)
        ACTIVE.dec(len(self._requests))
        model = self._served.name
        TOKENS.labels("completion", model).inc(self.completion_tokens)
        count_flags("output", (pieces.verdict for pieces in self._pieces))

    def cancel(self) -> None:
        for handle in self._handles:
            handle.cancel()

    def _time_out(self) -> None:
        self._late = True
        self.cancel()

    @property
    def completion_tokens(self) -> int:
        """How many tokens all answers have so far."""
        return sum(pieces.tokens for pieces in self._pieces)

    def _listener(self, index: int) -> Listener:
        def tell(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

        return tell

    async def __aiter__(self) -> AsyncIterator[tuple[int, Happening]]:
        left = len(self._requests)
        while left:
            index, event = await self._queue.get()
            pieces = self._pieces[index]
            if isinstance(event, Token):
                if not pieces.stopped:
                    yield index, self._grow(index, event)
            elif isinstance(event, PromptScored):
                yield index, event
            else:
                left -= 1
                yield index, pieces.finish()
                yield index, self._end(event, pieces)

    def _grow(self, index: int, token: Token) -> TextDelta:
        now, last = time.monotonic(), self._last[index]
        if self._started is not None:
            TTFT.observe(now - self._started)
            self._started = None
        if last is not None:
            INTER_TOKEN.observe(now - last)
        self._last[index] = now
        piece = self._pieces[index].feed(token)
        if self._pieces[index].stopped:
            self._handles[index].cancel()
        return piece

    def _end(self, done: Done, pieces: Detokenizer) -> Ended:
        if self._stopping:
            raise ApiError(503, "The server is shutting down.", code="shutting_down")
        if done.reason == "error":
            raise ApiError(500, "The model failed on this request; the server's log says why.", code="engine_error")
        if done.reason == "cancelled" and not (pieces.stopped or self._late):
            raise no_such_model(self._served.name)  # it was unloaded meanwhile
        if self._late and not self.completion_tokens:
            raise ApiError(503, "The model had no time for this request.", code="engine_overloaded")
        TOKENS.labels("prompt", self._served.name).inc(done.prompt_tokens)
        if pieces.blocked:
            return Ended("content_filter", done.prompt_tokens, done.cached_tokens, pieces.tokens)
        reason = "stop" if pieces.stopped or done.reason == "stop" else "length"
        return Ended(reason, done.prompt_tokens, done.cached_tokens, pieces.tokens)

    def shut_down(self) -> None:
        """End with an error instead of an answer."""
        self._stopping = True
        self.cancel()


def shut_down_all() -> None:
    """End every answer in progress; their streams say so."""
    for generation in list(_running):
        generation.shut_down()


def seed_of(seed: int | None, index: int) -> int:
    """The engine's seed for one of several answers; without a seed, any."""
    if seed is None:
        return secrets.randbits(63)
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big")
