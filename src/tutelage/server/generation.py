"""Completions in progress: receives the engine's events from its thread, and yields text in the event loop.

    async with Generation(served, requests, stop) as generation:
        async for index, event in generation: ...          index: which of the requests

Each completion yields PromptScored (if requested), then TextDelta (text that will not change) ..., then GenerationEnd.
Leaving the block cancels completions that are still running. They are also cancelled by the deadline (they then end
with "length"), by the server's shutdown, and by unloading the model.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from tutelage.engine.requests import (
    Done,
    Event,
    Handle,
    Listener,
    ModelUnloaded,
    PromptScored,
    QueueFull,
    Request,
    Token,
)
from tutelage.moderation.moderator import Moderator
from tutelage.moderation.stream_filter import StreamFilter
from tutelage.server.detokenizer import Detokenizer, TextDelta, TokenEntry
from tutelage.server.metrics import ACTIVE, INTER_TOKEN, REJECTED, TOKENS, TTFT, count_flags
from tutelage.server.registry import Served, no_such_model
from tutelage.web.errors import ApiError

SECONDS = 300.0  # deadline of a completion

_running: set["Generation"] = set()


@dataclass(frozen=True)
class GenerationEnd:
    """The end of one completion. `reason` is OpenAI's: stop, length or content_filter."""

    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ending: tuple[TokenEntry, ...] = ()  # sampled tokens without text: the stop token, or those that a stop string cut


GenerationEvent = PromptScored | TextDelta | GenerationEnd


def _filters(moderator: Moderator | None) -> Callable[[], StreamFilter | None]:
    """A factory of stream filters, one per completion. It makes None if the policy does not moderate output."""
    if moderator is None or moderator.config.moderate not in ("output", "both"):
        return lambda: None
    return lambda: StreamFilter(moderator)


class Generation:
    """The completions of one call; see the module's docstring."""

    def __init__(
        self,
        served: Served,
        requests: Sequence[Request],
        stop: Sequence[str] = (),
        *,
        chat: bool = False,
        moderator: Moderator | None = None,
        marks: Mapping[int, bytes] | None = None,
    ):
        """marks: the text of special tokens that are to be seen in the completions."""
        self._served, self._requests = served, requests
        strip = chat and not served.tokenizer.byte_level
        make_filter = _filters(moderator)
        self._detokenizers = [Detokenizer(served.table, stop, strip, make_filter(), marks) for _ in requests]
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._handles: list[Handle] = []
        self._stopping = self._late = False
        self._started: float | None = None
        self._last: list[float | None] = [None] * len(requests)  # when each completion's last token came

    async def __aenter__(self) -> Self:
        """Submit all requests to the engine. Raises ApiError if there are too many, or its queue is full."""
        self._loop = asyncio.get_running_loop()
        engine = self._served.engine
        assert engine, "only policies generate text"
        if len(self._requests) > engine.most:
            message = f"The request needs {len(self._requests)} completions; this server allows {engine.most} at once."
            raise ApiError(400, message, code="invalid_value")
        try:
            for index, request in enumerate(self._requests):
                self._handles.append(engine.submit(request, self._listener(index)))
        except QueueFull:
            self.cancel()
            REJECTED.labels("engine_overloaded").inc()
            message = "Too many requests are waiting for the model. Try again soon."
            raise ApiError(503, message, code="engine_overloaded", headers={"retry-after": "1"}) from None
        except ModelUnloaded:
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
        count_flags("output", (detokenizer.verdict for detokenizer in self._detokenizers))

    def cancel(self) -> None:
        """Cancel all completions that are still running."""
        for handle in self._handles:
            handle.cancel()

    def end(self, index: int) -> None:
        """End one completion, as a stop string does."""
        self._detokenizers[index].stopped = True
        self._handles[index].cancel()

    def _time_out(self) -> None:
        self._late = True
        self.cancel()

    @property
    def completion_tokens(self) -> int:
        """How many tokens all completions have together so far."""
        return sum(detokenizer.tokens for detokenizer in self._detokenizers)

    def _listener(self, index: int) -> Listener:
        def forward(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

        return forward

    async def __aiter__(self) -> AsyncIterator[tuple[int, GenerationEvent]]:
        running = len(self._requests)
        while running:
            index, event = await self._queue.get()
            detokenizer = self._detokenizers[index]
            if isinstance(event, Token):
                if not detokenizer.stopped:
                    yield index, self._add(index, event)
            elif isinstance(event, PromptScored):
                yield index, event
            else:
                running -= 1
                yield index, detokenizer.finish()
                yield index, self._end(event, detokenizer)

    def _add(self, index: int, token: Token) -> TextDelta:
        now, last = time.monotonic(), self._last[index]
        if self._started is not None:
            TTFT.observe(now - self._started)
            self._started = None
        if last is not None:
            INTER_TOKEN.observe(now - last)
        self._last[index] = now
        delta = self._detokenizers[index].feed(token)
        if self._detokenizers[index].stopped:
            self._handles[index].cancel()
        return delta

    def _end(self, done: Done, detokenizer: Detokenizer) -> GenerationEnd:
        if self._stopping:
            raise ApiError(503, "The server is shutting down.", code="shutting_down")
        if done.reason == "error":
            raise ApiError(500, "The model failed on this request; the server's log says why.", code="engine_error")
        if done.reason == "constraint":
            message = f"The answer could not be held to its format: {done.detail}"
            raise ApiError(500, message, code="format_failed", headers={"x-should-retry": "false"})
        if done.reason == "cancelled" and not (detokenizer.stopped or self._late):
            raise no_such_model(self._served.name)  # the model was unloaded meanwhile
        if self._late and not self.completion_tokens:
            message = f"The model wrote nothing within {SECONDS:g} seconds. Try again soon."
            raise ApiError(503, message, code="engine_overloaded")
        TOKENS.labels("prompt", self._served.name).inc(done.prompt_tokens)
        reason = "stop" if detokenizer.stopped or done.reason == "stop" else "length"
        reason = "content_filter" if detokenizer.blocked else reason
        ending = detokenizer.ending(done.end)
        return GenerationEnd(reason, done.prompt_tokens, done.cached_tokens, detokenizer.tokens, ending)

    def shut_down(self) -> None:
        """Cancel all completions; their reader gets a `shutting_down` error."""
        self._stopping = True
        self.cancel()


def shut_down_all() -> None:
    """End every completion in progress with an error, because the server stops."""
    for generation in list(_running):
        generation.shut_down()


def seed_of(seed: int | None, index: int) -> int:
    """The engine's seed for completion `index` of a request; random if the request has no seed."""
    if seed is None:
        return secrets.randbits(63)
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big")
