"""Cleaning: cases worked by hand, and idempotence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data import clean

ANY_TEXT = st.text(st.characters())  # half surrogate pairs and control characters included


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  hi   there ", "hi there"),
        ("a\tb\r\nc", "a b c"),
        ("a\x00b\x1b[0m", "ab[0m"),
        ("cafe\u0301", "café"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("half \ud83d pair", "half pair"),
        ("\u4f60\u597d\uff0c\u3000\u4e16\u754c\uff01", "你好， 世界！"),  # full-width punctuation stays as it is
        ("👩\u200d🚀", "👩\u200d🚀"),  # one astronaut, not a woman and a rocket
        ("\x00 \u200b", ""),
    ],
)
def test_lines(raw: str, cleaned: str):
    assert clean.clean_line(raw) == cleaned


def test_documents_keep_their_lines():
    assert clean.clean_text("a  b \r\n\r\n\r\n\r\n c\rd\n") == "a b\n\nc\nd"


@given(ANY_TEXT)
def test_cleaning_twice_is_cleaning_once(text: str):
    for function in (clean.clean_line, clean.clean_text):
        once = function(text)
        assert function(once) == once
        once.encode("utf-8")


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), ANY_TEXT)))
def test_cleaning_messages_twice_is_cleaning_once(turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    once = clean.clean_messages(messages)
    assert clean.clean_messages(once) == once
    assert all(m["content"] for m in once)
    assert all(a["role"] != b["role"] for a, b in zip(once, once[1:], strict=False))


def test_empty_turns_go_and_neighbours_merge():
    turns = [("user", "a"), ("assistant", " "), ("user", "b"), ("assistant", "c")]
    cleaned = clean.clean_messages([{"role": r, "content": c} for r, c in turns])
    assert cleaned == [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]


def test_distinct_keeps_the_first():
    assert list(clean.distinct(["b", "A", "a", "b"], str.lower)) == ["b", "A"]
