"""The prefix cache, against a search through everything that was ever added."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tutelage.engine import prefix_cache
from tutelage.engine.prefix_cache import PrefixCache

texts = st.lists(st.sampled_from([0, 1, 2, 255, 256, 65_536]), min_size=1, max_size=7).map(tuple)
adapters = st.sampled_from(["", "a", "b"])


def array(text: tuple[int, ...]) -> np.ndarray:
    return np.array(text, dtype=np.int64)


def alike(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """The length of the common prefix, counted token by token."""
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count


@given(st.lists(st.tuples(adapters, texts), max_size=30), adapters, texts)
def test_the_longest_common_prefix_is_found(
    read: list[tuple[str, tuple[int, ...]]], adapter: str, wanted: tuple[int, ...]
) -> None:
    kept = PrefixCache(10**6)
    for by, text in read:
        kept.keep(by, array(text), len(text), lambda text=text: [text])  # type: ignore[arg-type, misc]
    found, length = kept.find(adapter, array(wanted))
    assert length == max((alike(text, wanted) for by, text in read if by == adapter), default=0)
    assert (found is None) == (length == 0)
    if found:
        assert tuple(found.ids[:length]) == wanted[:length] and (adapter, tuple(found.ids)) in read
        assert found.kv == [tuple(found.ids)]


@given(st.lists(st.tuples(adapters, texts), max_size=30), st.integers(1, 40), adapters)
def test_memory_is_counted_and_no_entry_is_a_prefix_of_another(
    read: list[tuple[str, tuple[int, ...]]], memory: int, gone: str
) -> None:
    kept = PrefixCache(memory)
    for by, text in read:
        kept.keep(by, array(text), len(text), list)
        assert kept.bytes == sum(prefix.size for prefix in kept.entries.values()) <= memory
        assert sorted(kept.entries) == kept.sorted_keys
        held = [(key[0], tuple(prefix.ids)) for key, prefix in kept.entries.items()]
        for one, other in ((a, b) for a in held for b in held if a != b and a[0] == b[0]):
            assert other[1][: len(one[1])] != one[1]
        if len(text) <= memory:
            assert any(name == by and other[: len(text)] == text for name, other in held)
    kept.forget(gone)
    assert not [key for key in kept.entries if key[0] == gone]


def test_the_least_recently_used_is_evicted_first() -> None:
    kept = PrefixCache(3)
    for first in (1, 2, 3):
        kept.keep("", array((first, 9)), 1, list)
    kept.find("", array((1, 5)))
    kept.keep("", array((4, 9)), 1, list)
    assert [int(prefix.ids[0]) for prefix in kept.entries.values()] == [3, 1, 4]


def test_thousands_of_entries_are_not_compared_one_by_one(monkeypatch) -> None:
    kept, looked = PrefixCache(10**6), []
    for number in range(5_000):
        kept.keep("", array((number, 7)), 1, list)
    whole = prefix_cache.common_prefix
    monkeypatch.setattr(prefix_cache, "common_prefix", lambda *pair: looked.append(pair) or whole(*pair))
    assert kept.find("", array((4_321, 7, 8)))[1] == 2
    kept.keep("", array((4_321, 7, 8)), 1, list)
    assert len(looked) <= 4
