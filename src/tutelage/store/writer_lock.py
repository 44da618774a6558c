"""A lock on a file: one writer at a time among the threads and processes that share a database.

    WriterLock(file).held(patience)

Threads get it in the order in which they asked. Whoever waits longer than its patience gives up, for example because a
stopped process holds the lock.
"""

import fcntl
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tutelage.store.failures import StorageError
from tutelage.store.private import owner_only

LEAST_PAUSE, MOST_PAUSE = 0.0005, 0.01  # seconds between two tries while another process holds the lock


class WriterLock:
    """The lock of one database. Threads share one object; each process has its own."""

    def __init__(self, file: Path):
        self._file = file
        self._changing = threading.Lock()
        self._queue: deque[threading.Event] = deque()  # the first one's turn it is

    @contextmanager
    def held(self, patience: float) -> Iterator[None]:
        """Hold the lock for the block. Raises StorageError if it is not free within `patience` seconds."""
        deadline = time.monotonic() + patience
        with ExitStack() as stack:
            stack.enter_context(self._turn(deadline))
            file = stack.enter_context(open(self._file, "a", opener=owner_only))
            lock(file.fileno(), deadline)  # released when the file is closed, also by kill -9
            yield

    @contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        """Wait for this thread's turn."""
        mine = threading.Event()
        with self._changing:
            self._queue.append(mine)
            if self._queue[0] is mine:
                mine.set()
        try:
            if not mine.wait(max(0.0, deadline - time.monotonic())):
                raise busy()
            yield
        finally:
            with self._changing:
                self._queue.remove(mine)
                if self._queue:
                    self._queue[0].set()


def lock(descriptor: int, deadline: float) -> None:
    """Lock an open file. Raises StorageError if another process still holds it at the deadline."""
    pause = LEAST_PAUSE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise busy() from None
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, MOST_PAUSE)


def busy() -> StorageError:
    return StorageError("the database failed: another process is writing and does not finish", full=False)
