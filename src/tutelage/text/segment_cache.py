"""Remembers the ids of recent segments of text, within a limit in bytes.

A longer conversation repeats the segments of a shorter one. The keys are texts that users typed, of any length, so the
cache counts bytes and not entries.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

Segment = tuple[str, str, str]  # the control token before it, the text, the control token after it
Ids = tuple[int, ...]

CACHE_BYTES = 16 * 2**20
ENTRY_BYTES = 400  # what an entry takes besides its characters and ids
CHARACTER_BYTES, ID_BYTES = 4, 40  # at most


class SegmentCache:
    """Calls `encode` once for each segment that it still remembers. Threads may share it."""

    def __init__(self, encode: Callable[[str, str, str], Ids], limit: int = CACHE_BYTES):
        self._encode, self._limit = encode, limit
        self._kept: OrderedDict[Segment, Ids] = OrderedDict()  # the one that was used last is at the end
        self._changing = threading.Lock()
        self.bytes = 0

    def __call__(self, *segment: str) -> Ids:
        """The segment's ids."""
        left, text, right = segment
        key = (left, text, right)
        with self._changing:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        ids = self._encode(left, text, right)
        self._keep(key, ids)
        return ids

    def _keep(self, key: Segment, ids: Ids) -> None:
        """Remember the ids, and forget the segments that were not used for longest."""
        if size_of(key, ids) > self._limit // 4:  # one long text must not push out all others
            return
        with self._changing:
            if key not in self._kept:
                self._kept[key] = ids
                self.bytes += size_of(key, ids)
            while self.bytes > self._limit:
                self.bytes -= size_of(*self._kept.popitem(last=False))


def size_of(key: Segment, ids: Ids) -> int:
    """Bytes that an entry takes, at most."""
    return ENTRY_BYTES + CHARACTER_BYTES * len(key[1]) + ID_BYTES * len(ids)
