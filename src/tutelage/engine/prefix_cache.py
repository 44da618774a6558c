"""The prefix cache: keys and values of token sequences, for later requests that begin with the same tokens.

    keep(ids, ...) when a request ends;  find(ids) -> the entry with the longest common prefix, and that prefix's length

Every turn of a conversation begins with the earlier ones, and many conversations begin with the same system prompt.
Memory is bounded: the least recently used entry is evicted first, and an entry that is a prefix of a new one is
replaced by it. Keys are sorted, so that entries with a common prefix are neighbours and both operations stay fast with
thousands of entries (a tiny model's are small).
"""

import bisect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.engine.slot_cache import SavedKV

Key = tuple[str, bytes]  # adapter, and ids as big-endian bytes, which sort like the numbers


@dataclass(frozen=True, eq=False)
class Prefix:
    """A cached token sequence."""

    ids: np.ndarray
    kv: SavedKV
    size: int  # in bytes


class PrefixCache:
    """Token sequences with their keys and values. None is a prefix of another with the same adapter."""

    def __init__(self, memory: int):
        """`memory` is the limit in bytes."""
        self.memory, self.bytes = memory, 0
        self.entries: OrderedDict[Key, Prefix] = OrderedDict()  # the most recently used last
        self.sorted_keys: list[Key] = []

    def find(self, adapter: str, ids: np.ndarray) -> tuple[Prefix | None, int]:
        """The entry that shares the longest prefix with `ids`, and that prefix's length; (None, 0) if none does."""
        at = bisect.bisect(self.sorted_keys, _key(adapter, ids))
        neighbours = [key for key in self.sorted_keys[max(0, at - 1) : at + 1] if key[0] == adapter]
        lengths = [(common_prefix(self.entries[key].ids, ids), key) for key in neighbours]
        length, best = max(lengths, default=(0, None))
        if best is None or length == 0:
            return None, 0
        self.entries.move_to_end(best)
        return self.entries[best], length

    def keep(self, adapter: str, ids: np.ndarray, size: int, copy: Callable[[], SavedKV]) -> None:
        """Add an entry with the keys and values that `copy` returns, `size` bytes.

        Does nothing if the entry is too large, or equal to or a prefix of another one.
        """
        key = _key(adapter, ids)
        at = bisect.bisect_left(self.sorted_keys, key)
        if size > self.memory or (at < len(self.sorted_keys) and begins_with(self.sorted_keys[at], key)):
            return
        if at > 0 and begins_with(key, self.sorted_keys[at - 1]):
            self._drop(self.sorted_keys[at - 1])
        while self.bytes + size > self.memory:
            self._drop(next(iter(self.entries)))
        self.entries[key] = Prefix(ids, copy(), size)
        bisect.insort(self.sorted_keys, key)
        self.bytes += size

    def forget(self, adapter: str) -> None:
        """Drop all entries of an adapter."""
        for key in [key for key in self.sorted_keys if key[0] == adapter]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self.bytes -= self.entries.pop(key).size
        del self.sorted_keys[bisect.bisect_left(self.sorted_keys, key)]


def _key(adapter: str, ids: np.ndarray) -> Key:
    return adapter, ids.astype(">u4").tobytes()


def begins_with(longer: Key, shorter: Key) -> bool:
    """Whether one sequence begins with or equals the other, for the same adapter."""
    return longer[0] == shorter[0] and longer[1].startswith(shorter[1])


def common_prefix(first: np.ndarray | Sequence[int], second: np.ndarray | Sequence[int]) -> int:
    """The length of the longest common prefix of two token sequences."""
    shorter = min(len(first), len(second))
    same = np.asarray(first[:shorter]) == np.asarray(second[:shorter])
    return shorter if same.all() else int(same.argmin())
