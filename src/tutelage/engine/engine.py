"""One model, many requests: they join and leave at every step.

    submit(request, listener) -> wait for a slot -> step, step, ... -> PromptScored, Token, ..., Done

Iterations are scheduled instead of requests (Yu et al. 2022, Orca), and a long prompt is read in pieces beside the
others' answers (Agrawal et al. 2024, Sarathi), so that it keeps nobody waiting. What is run in a step stands in
`batch.py`. Memory: slots are taken once, and what they leave of the bound is for prefixes that may come again. An
answer depends on its request alone, as everywhere (`sampler.py`).
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tutelage.engine.batch import Batch
from tutelage.engine.fairness import FairLock, FairQueue
from tutelage.engine.multi_lora import Adapters
from tutelage.engine.prefix_cache import PrefixCache
from tutelage.engine.requests import Done, Gone, Handle, Listener, Request
from tutelage.engine.slot_cache import SlotCache, bytes_per_token
from tutelage.errors import InputError
from tutelage.model.gpt import GPT
from tutelage.sampling.sampler import inference_copy

log = logging.getLogger(__name__)
FAILURES = 3  # in a row: one alone may be its requests' fault
FAILING_SECONDS = 60.0  # after the last one the engine may be tried again


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How many requests run at once, and what they may take. Raises InputError for numbers that cannot work."""

    slots: int = 32
    """Requests that run at the same time, fewer where memory holds fewer; further ones wait."""
    context: int = 2048
    """Longest prompt with its answer, in tokens; never more than the model's own, which 0 asks for."""
    memory: int = 2048
    """MiB for keys and values: three quarters at most for slots, the rest for prefixes that may come again."""
    piece: int = 128
    """Tokens of one step: the next one of every answer, and for the rest prompts."""
    queue: int = 512
    """Requests that may wait, of one owner no more than there are places left; further ones are refused."""

    def __post_init__(self) -> None:
        for name, least in {"slots": 1, "context": 0, "memory": 1, "piece": 1, "queue": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: must be at least {least}")


class Engine:
    """Runs requests on one model, in a thread of its own (`start`) or step by step."""

    def __init__(self, model: GPT, config: EngineConfig = EngineConfig(), turns: FairLock | None = None):
        """`turns` is shared by engines on the same processor. Raises InputError when memory holds not even one slot."""
        model = inference_copy(model)
        self.model, self.config = model, config
        self.context = min(config.context or model.config.context, model.config.context)
        memory = config.memory * 2**20
        count = self._slots_within(memory)
        slots = SlotCache(model.config, count, self.context, model.compute_dtype, model.embedding.weight.device)
        self.adapters = Adapters(model)
        self.prefixes = PrefixCache(memory - count * slots.nbytes(self.context))
        self.batch = Batch(model, slots, self.prefixes, self.adapters, config.piece)
        self.count = count
        self.waiting: FairQueue[Handle] = FairQueue(config.queue)
        self.most = (config.queue + 1) // 2  # of one owner's that can wait, where nobody else has any
        self.changed = threading.Condition()  # guards `waiting` and `closing`; `turns` guards all the rest
        self.closing = False
        self.failures, self.failed_at = 0, 0.0  # in a row, and when the last one was
        self.turns = turns or FairLock()
        self.thread: threading.Thread | None = None

    def _slots_within(self, memory: int) -> int:
        slot = self.context * bytes_per_token(self.model.config, self.model.compute_dtype)
        if slot > memory:
            raise InputError(
                f"memory {memory / 2**20:.0f} MiB: one request of {self.context} tokens takes {slot / 2**20:.0f} MiB; "
                "give more, or a shorter context"
            )
        return max(1, min(self.config.slots, memory * 3 // 4 // slot))

    def submit(self, request: Request, listener: Listener) -> Handle:
        """Queue a request, from any thread; its events come from the engine's thread.

        Raises QueueFull, Gone, or ValueError for what this model cannot answer.
        """
        self._check(request)
        handle = Handle(request, listener, self._wake)
        with self.changed:
            if self.closing:
                raise Gone("the engine is closed")
            self.waiting.add(request.owner, handle)
            self.changed.notify_all()
        return handle

    def _check(self, request: Request) -> None:
        vocabulary = self.model.config.vocab_size
        named = [*request.prompt, *(token for token, _ in request.sampling.logit_bias)]
        if not request.prompt or request.max_new_tokens < 0 or request.seed < 0:
            raise ValueError("a request has a prompt, and neither its seed nor its number of tokens is negative")
        if outside := [token for token in named if not 0 <= token < vocabulary]:
            raise ValueError(f"token {outside[0]}: the vocabulary has {vocabulary}")
        if len(request.prompt) + request.max_new_tokens > self.context:
            asked = f"{len(request.prompt)} tokens of prompt and {request.max_new_tokens} of answer"
            raise ValueError(f"{asked} exceed the context of {self.context}")
        if request.adapter and request.adapter not in self.adapters.named:
            raise Gone(f"adapter {request.adapter!r} is not loaded")

    def load(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""
        return len(self.batch.rows), len(self.waiting)

    @property
    def failing(self) -> bool:
        """Whether it can answer nothing: its last passes all failed, or its thread has died."""
        dead = self.thread is not None and not self.thread.is_alive()
        return dead or (self.failures >= FAILURES and time.monotonic() - self.failed_at < FAILING_SECONDS)

    def add_adapter(self, name: str, adapted: GPT) -> None:
        """Serve the adapters of a model of this shape over this engine's weights."""
        with self.turns:
            self.adapters.add(name, adapted)

    def remove_adapter(self, name: str) -> None:
        """Its requests end as cancelled."""
        with self.turns:
            self._cancel(lambda handle: handle.request.adapter == name)
            self.adapters.remove(name)
            self.prefixes.forget(name)

    def start(self) -> None:
        """Run in a thread of its own until `close`."""
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop; what still runs or waits is cancelled."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        if self.thread:
            self.thread.join()
        with self.turns:
            self._cancel(lambda handle: True)

    def run(self) -> None:
        """Step after step; asleep while there is nothing to do."""
        while not self.closing:
            if not self.step():
                with self.changed:
                    self.changed.wait_for(lambda: self.closing or len(self.waiting) > 0)

    def step(self) -> bool:
        """Let requests leave and join, and run one pass. Returns whether there is more to do."""
        with self.turns:
            try:
                self._cancel(lambda handle: handle.cancelled)
                self._admit()
                if self.batch.rows:
                    self.batch.step()
                    self.failures = 0
            except Exception as error:  # one bad pass must neither end the engine nor leave anyone waiting
                log.exception("a pass failed")
                self._count_failure()
                self.batch.fail(described(error))
            return bool(self.batch.rows or self.waiting)

    def _admit(self) -> None:
        while len(self.batch.rows) < self.count:
            with self.changed:
                if not self.waiting:
                    return
                handle = self.waiting.next()
            adapter, size = handle.request.adapter, len(handle.request.prompt)
            if adapter and adapter not in self.adapters.named:
                handle.tell(Done("cancelled", size, 0))  # removed after `submit` had looked
                continue
            try:
                self.batch.admit(handle)
            except Exception as error:
                log.exception("a request failed before its first pass")
                self._count_failure()
                handle.tell(Done("error", size, 0, described(error)))

    def _cancel(self, unwanted: Callable[[Handle], bool]) -> None:
        with self.changed:
            gone = self.waiting.remove(unwanted)
        for handle in gone:
            handle.tell(Done("cancelled", len(handle.request.prompt), 0))
        for row in [row for row in self.batch.rows if unwanted(row.handle)]:
            self.batch.finish(row, "cancelled")

    def _count_failure(self) -> None:
        self.failures, self.failed_at = self.failures + 1, time.monotonic()

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
