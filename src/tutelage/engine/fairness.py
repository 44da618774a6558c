"""Who is next: requests that wait, and engines that share one machine.

FairQueue: owners take turns, each with its own requests in order;  FairLock: threads take turns, in the order they came
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tutelage.engine.requests import QueueFull

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """A queue per owner, emptied round robin: who sends a hundred requests delays nobody else's first one."""

    def __init__(self, most: int):
        self.most = most
        self.queues: OrderedDict[str, deque[Item]] = OrderedDict()  # whose turn it is stands first

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def __iter__(self) -> Iterator[Item]:
        return (item for queue in self.queues.values() for item in queue)

    def add(self, owner: str, item: Item) -> None:
        """Raises QueueFull where as many of the owner's wait as there are places left: nobody takes them all."""
        waiting, own = len(self), len(self.queues.get(owner, ()))
        if own >= self.most - waiting:
            raise QueueFull(f"{waiting} requests are waiting, {own} of this owner, and {self.most} may")
        self.queues.setdefault(owner, deque()).append(item)

    def next(self) -> Item:
        """The first of the owner whose turn it is; the owner's next turn comes after everybody else's."""
        owner, queue = self.queues.popitem(last=False)
        item = queue.popleft()
        if queue:
            self.queues[owner] = queue
        return item

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take out all that are no longer wanted."""
        gone = [item for item in self if unwanted(item)]
        for owner, queue in list(self.queues.items()):
            left = deque(item for item in queue if not unwanted(item))
            if left:
                self.queues[owner] = left
            else:
                del self.queues[owner]
        return gone


class FairLock:
    """A lock that is given in the order in which it was asked for: of two engines none starves the other."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.asked = self.served = 0

    def __enter__(self) -> None:
        with self.changed:
            mine = self.asked
            self.asked += 1
            self.changed.wait_for(lambda: self.served == mine)

    def __exit__(self, *error: object) -> None:
        with self.changed:
            self.served += 1
            self.changed.notify_all()
