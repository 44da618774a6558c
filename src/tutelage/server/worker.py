"""A child process that many callers share: short questions first, and callers in turn.

    await worker.ask(owner, size, "job", ...)  ->  the answer of the child's function

Work that holds Python's lock would stall the engine and the event loop, so it is done in a process of its own. The
worker's thread in this process only waits for it.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tutelage.bounded import Child, Overrun
from tutelage.engine.fairness import FairQueue
from tutelage.engine.requests import QueueFull
from tutelage.web.errors import ApiError

SHORT = 20_000  # characters of a question that goes before longer ones
SHORT_IN_A_ROW = 16  # while a longer one waits
SECONDS = 2.0  # of computing for one question
SECONDS_PER_CHARACTER = 10e-6  # in addition
CAPACITY = 512  # questions that may wait


@dataclass
class Question:
    """One question and its answer to come."""

    job: str
    seconds: float
    arguments: dict[str, Any]
    answer: Future[Any] = field(default_factory=Future)


class Worker:
    """One child process and the questions that wait for it. Safe to use from all threads and event loops."""

    def __init__(self, child: Child, seconds: float = SECONDS):
        self._child, self._seconds = child, seconds
        self._short: FairQueue[Question] = FairQueue(CAPACITY)
        self._long: FairQueue[Question] = FairQueue(CAPACITY)
        self._changed = threading.Condition()
        self._in_a_row = 0  # short questions since the last long one
        self._closing = False
        self._thread: threading.Thread | None = None

    async def ask(self, owner: str, size: int, job: str, **arguments: Any) -> Any:
        """The child's answer to a question of `size` characters. Owners take turns.

        Raises Refused, Overrun or Failed (`bounded.py`), and ApiError if too many questions wait.
        """
        return await asyncio.wrap_future(self.submit(owner, size, job, **arguments))

    def submit(self, owner: str, size: int, job: str, **arguments: Any) -> Future[Any]:
        """Like `ask`, without waiting. A cancelled question is not put to the child."""
        question = Question(job, self._seconds + size * SECONDS_PER_CHARACTER, arguments)
        with self._changed:
            if self._closing:
                raise Overrun("closed")
            try:
                (self._short if size <= SHORT else self._long).add(owner, question)
            except QueueFull:
                message = "Too many requests are waiting to be read. Try again soon."
                raise ApiError(503, message, code="engine_overloaded", headers={"retry-after": "1"}) from None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
                self._thread.start()
            self._changed.notify()
        return question.answer

    def close(self) -> None:
        """End the child. All questions end with an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._child.close()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or len(self._short) or len(self._long))
                if not (self._short or self._long):
                    return
                question = self._next()
            if question.answer.set_running_or_notify_cancel():
                self._answer(question)

    def _next(self) -> Question:
        if len(self._short) and (not len(self._long) or self._in_a_row < SHORT_IN_A_ROW):
            self._in_a_row += 1
            return self._short.next()
        self._in_a_row = 0
        return self._long.next()

    def _answer(self, question: Question) -> None:
        try:
            question.answer.set_result(self._child.ask(question.job, question.seconds, **question.arguments))
        except BaseException as error:  # whoever asked must be told
            question.answer.set_exception(error)


async def all_of(awaited: Sequence[Awaitable[Any]]) -> list[Any]:
    """The results in order."""
    return list(await asyncio.gather(*awaited))


def in_pieces(items: list[Any], size: Callable[[Any], int]) -> list[list[Any]]:
    """The items in lists that are short questions each, as far as single items are."""
    pieces: list[list[Any]] = []
    room = 0
    for item in items:
        room -= size(item)
        if room < 0 or not pieces:
            pieces.append([])
            room = SHORT - size(item)
        pieces[-1].append(item)
    return pieces
