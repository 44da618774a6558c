"""A stub with the engine's interface: it generates a given text at a given speed.

For situations that a real model cannot produce on demand (failure, a full queue, no end), and for
benchmarks/serve_overhead.py, which measures the server without a model.
"""

import functools
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from local_worker import local_encoder

from tutelage.engine.requests import Done, Event, PromptScored, QueueFull, Request, Token
from tutelage.server.vocabulary import Vocabulary


@functools.cache
def vocabulary_of(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer, tokenizer.token_bytes(), tokenizer.end_ids)


class StubHandle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class StubEngine:
    """Generates the same ids for every request."""

    def __init__(self, answer: Sequence[int], *, pause: float = 0.0, full: bool = False, fail_after: int | None = None):
        self.answer, self.pause, self.full, self.fail_after = answer, pause, full, fail_after
        self.most, self.failing = 256, False
        self.requests: list[Request] = []
        self.handles: list[StubHandle] = []
        self.ended: list[tuple[str, float]] = []

    def load(self) -> tuple[int, int]:
        return len(self.handles) - len(self.ended), 0

    def submit(self, request: Request, listener: Callable[[Event], None]) -> StubHandle:
        if self.full:
            raise QueueFull
        handle = StubHandle()
        self.requests.append(request)
        self.handles.append(handle)
        if self.pause:
            threading.Thread(target=self.run, args=(request, listener, handle), daemon=True).start()
        else:
            self.run(request, listener, handle)
        return handle

    def run(self, request: Request, listener: Callable[[Event], None], handle: StubHandle) -> None:
        if request.prompt_logprobs:
            rest = len(request.prompt) - 1
            listener(
                PromptScored([None] + [-1.0] * rest, [[]] + [[(5, -0.5), (6, -1.5)][: request.top_logprobs]] * rest)
            )
        reason: Any = "stop" if len(self.answer) <= request.max_new_tokens else "length"
        for count, token in enumerate(self.answer[: request.max_new_tokens]):
            if self.pause:
                time.sleep(self.pause)
            if handle.cancelled:
                reason = "cancelled"
                break
            if self.fail_after == count:
                reason = "error"
                break
            listener(Token(token, -0.25, [(token, -0.25), (7, -2.0)][: request.top_logprobs]))
        self.ended.append((reason, time.monotonic()))
        listener(Done(reason, len(request.prompt), 0))


class StubModels:
    """A registry of one policy, `stub`, and one reward model, `judge`."""

    def __init__(self, tokenizer: Any, engine: StubEngine, context: int = 64, encoder: Any = None):
        table = tokenizer.token_bytes()
        common = dict(
            tokenizer=tokenizer,
            table=table,
            vocabulary=vocabulary_of(tokenizer),
            created=1_700_000_000,
            adapter="",
            context=context,
            suggestions=(),
        )
        common["encoder"] = encoder or local_encoder(tokenizer)
        self.tokenizer = tokenizer
        self.served = {
            "stub": SimpleNamespace(name="stub", kind="policy", fingerprint="fp_1", engine=engine, **common),
            "judge": SimpleNamespace(
                **common | {"context": 512}, name="judge", kind="reward", fingerprint="fp_2", engine=None, reward=None
            ),
        }

    def names(self) -> list[str]:
        return list(self.served)

    def get(self, name: str) -> Any:
        return self.served[name]

    def score(self, name: str, texts: Sequence[Sequence[int]]) -> list[float]:
        """The number of characters of each last turn."""
        turn = self.tokenizer.special["<|assistant|>"]
        lasts = ([*ids][-[*ids][::-1].index(turn) :] for ids in texts)
        return [float(len(self.tokenizer.decode(ids))) for ids in lasts]
