"""Fair scheduling of waiting requests, and of engines that share one machine.

FairQueue: owners take turns, and each owner's requests stay in order;  FairLock: threads get it in order of arrival
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tutelage.engine.requests import QueueFull

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """One queue per owner, served round robin: an owner with a hundred requests does not delay another's first one."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.queues: OrderedDict[str, deque[Item]] = OrderedDict()  # the owner whose turn it is comes first

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def __iter__(self) -> Iterator[Item]:
        return (item for queue in self.queues.values() for item in queue)

    def add(self, owner: str, item: Item) -> None:
        """Add an item at the end of its owner's queue.

        Raises QueueFull when the owner has as many items waiting as there are free places, so that no owner can take
        all places.
        """
        waiting, own = len(self), len(self.queues.get(owner, ()))
        if own >= self.capacity - waiting:
            raise QueueFull(f"{waiting} of {self.capacity} places in the queue are taken, {own} by this owner")
        self.queues.setdefault(owner, deque()).append(item)

    def next(self) -> Item:
        """Remove and return the next item of the owner whose turn it is; that owner then goes to the end."""
        owner, queue = self.queues.popitem(last=False)
        item = queue.popleft()
        if queue:
            self.queues[owner] = queue
        return item

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Remove and return all unwanted items."""
        removed = [item for item in self if unwanted(item)]
        for owner, queue in list(self.queues.items()):
            left = deque(item for item in queue if not unwanted(item))
            if left:
                self.queues[owner] = left
            else:
                del self.queues[owner]
        return removed


class FairLock:
    """A ticket lock: threads get it in the order in which they asked, so that no engine starves another."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.next_ticket = self.serving = 0

    def __enter__(self) -> None:
        with self.changed:
            ticket = self.next_ticket
            self.next_ticket += 1
            self.changed.wait_for(lambda: self.serving == ticket)

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.serving += 1
            self.changed.notify_all()
