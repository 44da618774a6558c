"""Keys and values of what was read before, for the next request that begins alike.

    keep(ids, ...) when a request ends;  find(ids) -> the kept one with the longest common prefix, and how long that is

A conversation comes back with every turn, and a system prompt with every conversation. Memory is bounded: what was
used longest ago goes first, and what a longer text begins with is not kept beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.model.slots import Kept


@dataclass(frozen=True, eq=False)
class Prefix:
    """A text that was read, and by which adapter."""

    adapter: str
    ids: np.ndarray
    kv: Kept
    size: int  # in bytes


class Prefixes:
    """Kept texts, the most recently used last."""

    def __init__(self, memory: int):
        """At most so many bytes of keys and values."""
        self.memory = memory
        self.kept: list[Prefix] = []

    @property
    def bytes(self) -> int:
        return sum(prefix.size for prefix in self.kept)

    def find(self, adapter: str, ids: np.ndarray) -> tuple[Prefix | None, int]:
        """The best of them, and how many tokens it has in common with `ids`; (None, 0) if none begins alike."""
        alike = [(common(prefix.ids, ids), prefix) for prefix in self.kept if prefix.adapter == adapter]
        length, best = max(alike, key=lambda found: found[0], default=(0, None))
        if best is None or length == 0:
            return None, 0
        self.kept.remove(best)
        self.kept.append(best)
        return best, length

    def keep(self, adapter: str, ids: np.ndarray, size: int, copy: Callable[[], Kept]) -> None:
        """Keep what `copy` gives, of `size` bytes, in place of what it begins with. Nothing changes if it is there
        already, or too large."""
        alike = [(common(other.ids, ids), other) for other in self.kept if other.adapter == adapter]
        if size > self.memory or any(length == len(ids) for length, _ in alike):
            return
        inside = {id(other) for length, other in alike if length == len(other.ids)}
        self.kept = [other for other in self.kept if id(other) not in inside]
        while self.bytes + size > self.memory:
            self.kept.pop(0)
        self.kept.append(Prefix(adapter, ids, copy(), size))

    def forget(self, adapter: str) -> None:
        """Everything that this adapter has read."""
        self.kept = [prefix for prefix in self.kept if prefix.adapter != adapter]


def common(first: np.ndarray | Sequence[int], second: np.ndarray | Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    shorter = min(len(first), len(second))
    same = np.asarray(first[:shorter]) == np.asarray(second[:shorter])
    return shorter if same.all() else int(same.argmin())
