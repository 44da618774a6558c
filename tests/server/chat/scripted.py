"""A model that generates given answers token by token, and a registry that serves it, for tests of the pages."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from local_worker import local_encoder

from tutelage.engine.requests import Done, Event, Request, Token
from tutelage.text.tokenizer import Tokenizer


class ScriptedEngine:
    """Gives each request the next answer, one token every `pause` seconds, from a thread as the engine does."""

    def __init__(self, tokenizer: Tokenizer, answers: Sequence[str], pause: float = 0.0):
        self.tokenizer, self.pause = tokenizer, pause
        self.answers = itertools.cycle(answers)
        self.asked: list[Request] = []
        self.running, self.most = 0, 256
        self.cancelled = 0

    def submit(self, request: Request, listener: Callable[[Event], None]) -> Any:
        self.asked.append(request)
        handle = SimpleNamespace(cancelled=False)
        handle.cancel = lambda: setattr(handle, "cancelled", True)
        ids = self.tokenizer.encode(next(self.answers))[: request.max_new_tokens]
        self.running += 1
        threading.Thread(target=self._write, args=(request, ids, listener, handle), daemon=True).start()
        return handle

    def _write(self, request: Request, ids: list[int], listener: Callable[[Event], None], handle: Any) -> None:
        for token in ids:
            time.sleep(self.pause)
            if handle.cancelled:
                break
            listener(Token(token, -1.0, []))
        self.running -= 1
        self.cancelled += handle.cancelled
        reason = "cancelled" if handle.cancelled else "length" if len(ids) == request.max_new_tokens else "stop"
        with contextlib.suppress(RuntimeError):  # the test client's loop ends with its request
            listener(Done(reason, len(request.prompt), 0))


class Models:
    """A registry of scripted engines."""

    def __init__(self, **engines: ScriptedEngine):
        self.engines = engines
        self.suggestions: dict[str, tuple[str, ...]] = {}

    def names(self) -> list[str]:
        return list(self.engines)

    def get(self, name: str) -> Any:
        engine = self.engines[name]
        return SimpleNamespace(
            name=name,
            kind="policy",
            tokenizer=engine.tokenizer,
            table=engine.tokenizer.token_bytes(),
            created=0,
            fingerprint=f"fp_{name}",
            engine=engine,
            adapter="",
            context=400,
            encoder=local_encoder(engine.tokenizer),
            suggestions=self.suggestions.get(name, ()),
        )
