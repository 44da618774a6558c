"""Keys and values of what was read before, for the next request that begins alike.

    keep(ids, ...) when a request ends;  find(ids) -> the kept one with the longest common prefix, and how long that is

A conversation comes back with every turn, and a system prompt with every conversation. Memory is bounded: what was
used longest ago goes first, and what a longer text begins with is not kept beside it. In the order of the dictionary
what begins alike stands side by side, so that neither takes longer when thousands are kept (a tiny model's are small).
"""

import bisect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.engine.slot_cache import SavedKV

Key = tuple[str, bytes]  # an adapter and the ids it has read, which sort as bytes as they do as numbers


@dataclass(frozen=True, eq=False)
class Prefix:
    """A text that was read."""

    ids: np.ndarray
    kv: SavedKV
    size: int  # in bytes


class PrefixCache:
    """SavedKV texts, none of them the beginning of another."""

    def __init__(self, memory: int):
        """At most so many bytes of keys and values."""
        self.memory, self.bytes = memory, 0
        self.kept: OrderedDict[Key, Prefix] = OrderedDict()  # the most recently used last
        self.sorted: list[Key] = []

    def find(self, adapter: str, ids: np.ndarray) -> tuple[Prefix | None, int]:
        """The best of them, and how many tokens it has in common with `ids`; (None, 0) if none begins alike."""
        at = bisect.bisect(self.sorted, _key(adapter, ids))
        beside = [key for key in self.sorted[max(0, at - 1) : at + 1] if key[0] == adapter]
        alike = [(common(self.kept[key].ids, ids), key) for key in beside]
        length, best = max(alike, default=(0, None))
        if best is None or length == 0:
            return None, 0
        self.kept.move_to_end(best)
        return self.kept[best], length

    def keep(self, adapter: str, ids: np.ndarray, size: int, copy: Callable[[], SavedKV]) -> None:
        """Keep what `copy` gives, of `size` bytes, in place of what it begins with. Nothing changes if it is there
        already, or too large."""
        key = _key(adapter, ids)
        at = bisect.bisect_left(self.sorted, key)
        if size > self.memory or (at < len(self.sorted) and begins(self.sorted[at], key)):
            return
        if at > 0 and begins(key, self.sorted[at - 1]):
            self._drop(self.sorted[at - 1])
        while self.bytes + size > self.memory:
            self._drop(next(iter(self.kept)))
        self.kept[key] = Prefix(ids, copy(), size)
        bisect.insort(self.sorted, key)
        self.bytes += size

    def forget(self, adapter: str) -> None:
        """Everything that this adapter has read."""
        for key in [key for key in self.sorted if key[0] == adapter]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self.bytes -= self.kept.pop(key).size
        del self.sorted[bisect.bisect_left(self.sorted, key)]


def _key(adapter: str, ids: np.ndarray) -> Key:
    return adapter, ids.astype(">u4").tobytes()


def begins(longer: Key, shorter: Key) -> bool:
    """Whether a text begins with another, or is the same, and one adapter has read both."""
    return longer[0] == shorter[0] and longer[1].startswith(shorter[1])


def common(first: np.ndarray | Sequence[int], second: np.ndarray | Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    shorter = min(len(first), len(second))
    same = np.asarray(first[:shorter]) == np.asarray(second[:shorter])
    return shorter if same.all() else int(same.argmin())
