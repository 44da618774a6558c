"""The fewest tokens that a text can have, against the library that encodes it."""

from functools import lru_cache

import pytest
from chat_ids import KINDS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from tutelage.text.token_bounds import TokenBounds, bounds_of

RUNS = st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=3), st.integers(1, 60))
TEXTS = st.lists(
    RUNS | st.sampled_from(["the cat ", "    ", "\u1112\u1161\u11ab", "e\u0301", "\x04", "<|im_end|>", "你好"])
).map("".join)


@lru_cache
def made(kind: str) -> tuple[Tokenizer, TokenBounds | None]:
    backend = KINDS[kind]()
    return backend, bounds_of(backend)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(text=TEXTS)
def test_no_text_has_fewer_tokens(kind: str, text: str) -> None:
    backend, bounds = made(kind)
    assert bounds
    assert bounds.least_tokens(text) <= len(backend.encode(text, add_special_tokens=False).ids)


def test_the_bound_is_reached() -> None:
    backend = byte_level({"aaaa": 300})
    bounds = bounds_of(backend)
    assert bounds and bounds.longest == 16  # the private names of control tokens are that long
    assert bounds.least_tokens("a" * 160) == 10


def byte_level(more: dict[str, int], without: str = "") -> Tokenizer:
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter not in without]
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)} | more, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def test_bytes_that_a_vocabulary_lacks_count_for_nothing() -> None:
    """The library drops them without a word, so a text of any length may have no token."""
    backend = byte_level({}, without="abc")
    bounds = bounds_of(backend)
    assert bounds and bounds.dropped == b"abc"
    for text in ("abc" * 1000, "abcd" * 1000):
        assert bounds.least_tokens(text) <= len(backend.encode(text).ids) == text.count("d")


def unbounded() -> dict[str, Tokenizer]:
    """Tokenizers of which one token may stand for any number of characters."""
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    spaces = byte_level({})
    spaces.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces.pre_tokenizer])
    squeezed = byte_level({})
    squeezed.normalizer = normalizers.Replace("  ", " ")
    swallowing = byte_level({})
    swallowing.add_special_tokens([AddedToken("<|user|>", rstrip=True)])
    return {"words": words, "spaces": spaces, "squeezed": squeezed, "swallowing": swallowing}


@pytest.mark.parametrize("name, text", [("words", "b" * 999), ("spaces", " " * 999), ("swallowing", " " * 999)])
def test_where_there_is_no_bound_none_is_claimed(name: str, text: str) -> None:
    backend = unbounded()[name]
    assert bounds_of(backend) is None
    before = "<|user|>" if name == "swallowing" else ""
    assert len(backend.encode(before + text).ids) <= 1


def test_a_normalizer_that_shortens_has_no_bound() -> None:
    assert bounds_of(unbounded()["squeezed"]) is None
