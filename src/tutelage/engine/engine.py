"""The engine: continuous batching of many requests on one model. Requests join and leave at every step.

    submit(request, listener) -> wait for a slot -> step, step, ... -> PromptScored, Token, ..., Done

Scheduling is per iteration instead of per request (Yu et al. 2022, Orca). A long prompt is processed in prefill chunks
beside the other requests' decoding (Agrawal et al. 2024, Sarathi), so that it delays nobody. `batch.py` runs a step.
Memory for the slots is reserved once; the rest of the limit is for the prefix cache. As with the sampler
(`sampling/sampler.py`), a response depends on its request alone.
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
from tutelage.engine.requests import Done, Handle, Listener, ModelUnloaded, Request
from tutelage.engine.slot_cache import SlotCache, bytes_per_token
from tutelage.errors import InputError
from tutelage.model.gpt import GPT
from tutelage.options import Advanced, Count, Natural, out_of_range
from tutelage.sampling.sampler import inference_copy

log = logging.getLogger(__name__)
FAILURES = 3  # the engine is failing after so many failed passes in a row; one alone may be a request's fault
FAILING_SECONDS = 60.0  # after the last failure; then the engine may be tried again


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How many requests run at once, and how much memory they may use."""

    slots: Count = 32
    """Maximum number of requests that run at once, fewer if --memory is too small. Further requests wait."""
    context: Natural = 2048
    """Maximum length of prompt plus answer, in tokens. 0 uses the model's context, which is also the upper limit."""
    memory: Count = 2048
    """MiB for the KV cache: up to three quarters for the slots of running requests, the rest for the prefix cache."""
    piece: Advanced[Count] = 128
    """Token budget of a step: one for every answer in progress, the rest (at least a quarter) for chunks of prompts."""
    queue: Advanced[Count] = 512
    """Places for waiting requests. A request is refused if its owner has as many waiting as there are free places."""

    def __post_init__(self) -> None:
        if wrong := out_of_range(self):
            raise InputError(wrong)


class Engine:
    """Runs requests on one model, in its own thread (`start`) or step by step (`step`)."""

    def __init__(self, model: GPT, config: EngineConfig = EngineConfig(), turns: FairLock | None = None):
        """Engines on one processor share a `turns` lock. Raises InputError if the memory cannot hold one slot."""
        model = inference_copy(model)
        self.model, self.config = model, config
        self.context = min(config.context or model.config.context, model.config.context)
        memory = config.memory * 2**20
        count = self._slot_count(memory)
        slots = SlotCache(model.config, count, self.context, model.compute_dtype, model.embedding.weight.device)
        self.adapters = Adapters(model)
        self.prefixes = PrefixCache(memory - count * slots.nbytes(self.context))
        self.batch = Batch(model, slots, self.prefixes, self.adapters, config.piece)
        self.count = count
        self.waiting: FairQueue[Handle] = FairQueue(config.queue)
        self.most = (config.queue + 1) // 2  # requests of one owner that can wait if no other owner has any
        self.changed = threading.Condition()  # guards `waiting` and `closing`; `turns` guards everything else
        self.closing = False
        self.failures, self.failed_at = 0, 0.0  # failures in a row, and the time of the last one
        self.turns = turns or FairLock()
        self.thread: threading.Thread | None = None

    def _slot_count(self, memory: int) -> int:
        """How many slots fit into three quarters of `memory` bytes; at least one. Raises InputError if none fits."""
        slot = self.context * bytes_per_token(self.model.config, self.model.compute_dtype)
        if slot > memory:
            raise InputError(
                f"--memory {self.config.memory}: one request of {self.context} tokens needs {slot / 2**20:.0f} MiB; "
                "raise --memory or lower --context"
            )
        return max(1, min(self.config.slots, memory * 3 // 4 // slot))

    def submit(self, request: Request, listener: Listener) -> Handle:
        """Queue a request, from any thread. The listener is called in the engine's thread.

        Raises QueueFull, ModelUnloaded, or ValueError for a request that this model cannot answer.
        """
        self._check(request)
        handle = Handle(request, listener, self._wake)
        with self.changed:
            if self.closing:
                raise ModelUnloaded("the engine is closed")
            self.waiting.add(request.owner, handle)
            self.changed.notify_all()
        return handle

    def _check(self, request: Request) -> None:
        vocab_size = self.model.tokens
        named = [*request.prompt, *(token for token, _ in request.sampling.logit_bias)]
        if not request.prompt or request.max_new_tokens < 0 or request.seed < 0:
            raise ValueError("a request needs a prompt, max_new_tokens >= 0 and seed >= 0")
        if outside := [token for token in named if not 0 <= token < vocab_size]:
            raise ValueError(f"token {outside[0]}: the vocabulary is 0 to {vocab_size - 1}")
        if len(request.prompt) + request.max_new_tokens > self.context:
            needed = f"{len(request.prompt)} prompt tokens and {request.max_new_tokens} new ones"
            raise ValueError(f"{needed} exceed the context of {self.context} tokens")
        if request.constraint and request.prompt_logprobs:
            raise ValueError("a request with a constraint cannot have its prompt scored")
        if request.adapter and request.adapter not in self.adapters.named:
            raise ModelUnloaded(f"adapter {request.adapter!r} is not loaded")

    def load(self) -> tuple[int, int]:
        """The number of running and of waiting requests."""
        return len(self.batch.rows), len(self.waiting)

    @property
    def failing(self) -> bool:
        """Whether the engine cannot answer: its last FAILURES passes all failed, or its thread has died."""
        dead = self.thread is not None and not self.thread.is_alive()
        return dead or (self.failures >= FAILURES and time.monotonic() - self.failed_at < FAILING_SECONDS)

    def add_adapter(self, name: str, adapted: GPT) -> None:
        """Serve the LoRA adapters of `adapted`, a model of the same shape, on this engine's weights."""
        with self.turns:
            self.adapters.add(name, adapted)

    def remove_adapter(self, name: str) -> None:
        """Stop serving an adapter. Its requests end as cancelled."""
        with self.turns:
            self._cancel(lambda handle: handle.request.adapter == name)
            self.adapters.remove(name)
            self.prefixes.forget(name)

    def start(self) -> None:
        """Run in a new thread until `close`."""
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop the thread, and cancel all running and waiting requests."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        if self.thread:
            self.thread.join()
        with self.turns:
            self._cancel(lambda handle: True)
        self.batch.masks.close()

    def run(self) -> None:
        """Run steps until closed, and sleep while there is nothing to do."""
        while not self.closing:
            if not self.step():
                with self.changed:
                    self.changed.wait_for(lambda: self.closing or len(self.waiting) > 0)

    def step(self) -> bool:
        """Remove cancelled requests, admit waiting ones and run one pass. Returns whether there is more to do."""
        with self.turns:
            try:
                self._cancel(lambda handle: handle.cancelled)
                self._admit()
                if self.batch.rows:
                    self.batch.step()
                    self.failures = 0
            except (
                Exception
            ) as error:  # a failed pass must neither end the engine nor leave a request without its last event
                log.exception("a pass failed; all running requests end with an error")
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
                handle.emit(Done("cancelled", size, 0))  # removed since `submit` checked it
                continue
            try:
                self.batch.admit(handle)
            except Exception as error:
                log.exception("a request could not be admitted")
                self._count_failure()
                handle.emit(Done("error", size, 0, described(error)))

    def _cancel(self, unwanted: Callable[[Handle], bool]) -> None:
        with self.changed:
            removed = self.waiting.remove(unwanted)
        for handle in removed:
            handle.emit(Done("cancelled", len(handle.request.prompt), 0))
        for row in [row for row in self.batch.rows if unwanted(row.handle)]:
            self.batch.finish(row, "cancelled")

    def _count_failure(self) -> None:
        self.failures, self.failed_at = self.failures + 1, time.monotonic()

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
