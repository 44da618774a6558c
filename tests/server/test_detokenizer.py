"""The detokenizer: the whole text equals the tokenizer's, and shown text never changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from tutelage.engine.requests import Token
from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.moderation.stream_filter import StreamFilter
from tutelage.sampling.stops import cut
from tutelage.server.detokenizer import Detokenizer, name_of
from tutelage.text.tokenizer import Tokenizer

TEXT = "héllo 世界 👍🏽! stop here, and 今天 again"


def spread(data: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes, split into tokens at the cuts."""
    ends = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def fed(tokens: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], list[int], bool]:
    """(the deltas, the ids of the entries, stopped)."""
    pieces = Detokenizer(tokens, stop)
    shown, ids = [], []
    for i in range(len(tokens)):
        piece = pieces.feed(Token(i, -1.0, []))
        shown.append(piece.text)
        ids += [entry.id for entry in piece.entries]
        if pieces.stopped:
            break
    last = pieces.finish()
    return [*shown, last.text], ids + [entry.id for entry in last.entries], pieces.stopped


@given(st.text(max_size=30), st.lists(st.integers(0, 200)))
def test_any_text_cut_anywhere_comes_back_whole(text: str, cuts: list[int]) -> None:
    text = text.encode("utf-8", "replace").decode()
    tokens = spread(text.encode(), cuts)
    shown, ids, stopped = fed(tokens)
    assert "".join(shown) == text
    assert ids == list(range(len(tokens)))
    assert not stopped
    assert all("\ufffd" not in piece for piece in shown) or "\ufffd" in text


@given(st.binary(max_size=20), st.lists(st.integers(0, 100)))
def test_broken_bytes_read_as_python_reads_them(data: bytes, cuts: list[int]) -> None:
    assert "".join(fed(spread(data, cuts))[0]) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("stop", [("stop",), ("世界",), ("sto", "stop here"), ("zzz",), ("again",), ("👍🏽!", "今")])
def test_stop_strings_across_token_borders(stop: tuple[str, ...], width: int) -> None:
    data = TEXT.encode()
    tokens = [data[i : i + width] for i in range(0, len(data), width)]
    shown, ids, stopped = fed(tokens, stop)
    assert "".join(shown) == cut(TEXT, stop)
    assert stopped == any(string in TEXT for string in stop)
    before = len(cut(TEXT, stop).encode())
    if stopped:  # the tokens that began before the stop string, and none after
        assert len(ids) == -(-before // width)
    else:
        assert len(ids) == len(tokens)


def test_only_what_may_become_a_stop_string_is_held() -> None:
    pieces = Detokenizer([b"ab", b"a", b"c", b"abd"], ["abc"])
    assert [pieces.feed(Token(i, 0.0, [])).text for i in range(4)] == ["", "ab", "ac", "abd"]


def test_entries_come_with_the_text_they_begin_in() -> None:
    pieces = Detokenizer(["世".encode()[:1], "世".encode()[1:], b"x", b""])
    assert [len(pieces.feed(Token(i, 0.0, [])).entries) for i in range(3)] == [0, 2, 1]
    assert pieces.feed(Token(3, 0.0, [])).entries == ()
    assert [entry.offset for entry in pieces.finish().entries] == [2]


def test_the_space_before_the_first_word_goes_only_where_asked() -> None:
    tokens = [b"", b" a", b" b"]
    for strip, text in ((True, "a b"), (False, " a b")):
        pieces = Detokenizer(tokens, strip_first=strip)
        assert "".join(pieces.feed(Token(i, 0.0, [])).text for i in range(3)) == text


def test_names_of_tokens_are_distinct() -> None:
    assert name_of("世".encode()) == "世"
    assert name_of("世".encode()[:2]) == "bytes:\\xe4\\xb8"


def test_the_tokenizers_bytes_are_its_text(tokenizer) -> None:
    """Compared with the library's own decoder."""
    table = tokenizer.token_bytes()
    assert [len(piece) for piece in table] == tokenizer.token_byte_counts()
    for text in (TEXT, "\x00\x7f\n\t ~¡¬®ÿ", "the cat 你好"):
        ids = tokenizer.encode(text)
        assert b"".join(table[i] for i in ids).decode() == tokenizer.decode(ids) == text
    for token in range(tokenizer.vocab_size):
        assert table[token].decode("utf-8", "replace") == tokenizer.decode([token])


@pytest.mark.parametrize("stopped_by", ["a stop string", "the filter", "a stop token"])
def test_the_tokens_without_text_are_told_unless_the_filter_withheld_them(tmp_path, stopped_by: str) -> None:
    terms = tmp_path / "terms.txt"
    terms.write_text("[hate]\nthe cat\n", encoding="utf-8")
    moderator = Moderator(ModerationConfig(moderate="output", blocked=("hate",), terms=terms, builtin_terms=False))
    tokens = [b"a ", b"dog", b" the", b" cat", b"!"]
    filtered = StreamFilter(moderator) if stopped_by == "the filter" else None
    pieces = Detokenizer(tokens, (" the cat",) if stopped_by == "a stop string" else (), stream_filter=filtered)
    for i in range(4):
        pieces.feed(Token(i, -1.0, []))
    pieces.finish()
    told = [(entry.id, entry.offset) for entry in pieces.ending(Token(4, -2.0, []))]
    assert pieces.stopped == (stopped_by != "a stop token")
    assert told == {"a stop string": [(2, 5), (3, 5)], "the filter": [], "a stop token": [(4, 13)]}[stopped_by]


def test_added_tokens_that_no_byte_stands_for_are_their_text(tokenizer) -> None:
    """As DeepSeek-R1's marks, which are not special. Compared with the library's own decoder."""
    added = ["<｜User｜>", "<｜tool▁calls▁begin｜>", "<tool_call>", "你好"]
    backend = Backend.from_str(tokenizer.to_json())
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    table = Tokenizer(backend, tokenizer.settings).token_bytes()
    assert [table[backend.token_to_id(token)].decode() for token in added] == added
    for token in range(len(table)):
        assert table[token].decode("utf-8", "replace") == backend.decode([token])
