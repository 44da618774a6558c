"""JSON within limits: long lines, deep values and fields of another kind are refused in one line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tutelage import json_file
from tutelage.errors import InputError
from tutelage.json_file import DEEPEST, LONGEST_LINE, check_depth, lines_of, parse, read_object
from tutelage.kinds import (
    COUNT,
    FLAG,
    LARGEST,
    OBJECT,
    PATH,
    PLACE,
    TEXT,
    Kind,
    check_fields,
    either,
    listed,
    mapped,
    number,
    optional,
    record_of,
    whole,
)


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    return opening * levels + closing * levels


@pytest.mark.parametrize("beside", ["", "[],{}," * 40])
def test_a_value_may_be_so_deep_and_no_deeper(beside: str) -> None:
    """Many shallow values beside it do not count."""
    for levels in (DEEPEST - 1, DEEPEST):
        parse(f"[{beside}{nested(levels - 1)}]", "here", "move")
    for text in (f"[{beside}{nested(DEEPEST)}]", nested(10**5), '{"a":' * 70 + "1" + "}" * 70):
        with pytest.raises(InputError, match="^here: not JSON .* nested more than 64 levels deep"):
            parse(text, "here", "move")


def test_the_depth_is_that_of_a_part_of_the_text() -> None:
    check_depth([1], nested(100) + "[1]", "here", start=200)


def test_what_is_no_json_is_said_with_the_next_move() -> None:
    for text in ("{", "", "1 2", "9" * 5000):
        with pytest.raises(InputError, match="^here: not JSON .*; look again$") as refused:
            parse(text, "here", "look again")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"1", b"\xff", b"{", b'{"a": ' + b"[" * 10**5, b"\xef\xbb\xbf{}"]
)
def test_a_file_without_an_object(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: .*; copy the model or make it again$|64 levels deep"):
        read_object(path)


def test_a_file_that_is_none_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 300), tmp_path / "y" / "z"):
        with pytest.raises(InputError, match="cannot be read"):
            read_object(path)
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(2**40)  # sparse, so that only its size is large
    assert json_file.LARGEST_OBJECT == 64 * 2**20
    monkeypatch.setattr(json_file, "LARGEST_OBJECT", 2**20)
    with pytest.raises(InputError, match="larger than 1 MiB"):
        read_object(large)


def test_lines_are_counted_and_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n" + "二".encode() + b"\x0bthree")
    assert list(lines_of(path)) == [(1, "one\r\n"), (2, "\n"), (3, "二\x0bthree")]
    assert LONGEST_LINE == 16 * 2**20
    monkeypatch.setattr(json_file, "LONGEST_LINE", 2**20)
    path.write_bytes(b"x" * (2**20 - 1) + b"\n" + b"y" * 2**20 + b"\n")
    lines = lines_of(path)
    assert len(next(lines)[1]) == 2**20
    with pytest.raises(InputError, match=r"line 2: longer than 1 MiB; write one record per line"):
        next(lines)


FITS: list[tuple[Kind, list[Any], list[Any]]] = [
    (COUNT, [1, 7, LARGEST], [0, -1, True, 1.0, "1", None, LARGEST + 1, [1]]),
    (whole(2, 4), [2, 4], [1, 5, 2.5]),
    (number(), [0, -1.5, 1e300, 10**300], [math.nan, math.inf, 10**400, True, "1", None]),
    (number(above=0), [1e-9, 1], [0, -1, 0.0]),
    (TEXT, ["", "x", "你"], ["\ud800", 1, None, b"x"]),
    (FLAG, [True, False], [0, 1, "true", None]),
    (PLACE, ["../base", "org/name"], ["a\0b", "x" * 300, "x/" * 600, 1]),
    (PATH, ["a/b", "caf\udce9"], ["a\0b", "\ud800", 1, None]),
    (OBJECT, [{}], [[], None, "{}"]),
    (optional(COUNT), [None, 3], [0, "x"]),
    (either(COUNT, TEXT), [1, "x"], [0, None]),
    (listed(COUNT), [[], [1, 2]], [[0], 1, {"a": 1}, "12"]),
    (mapped(TEXT), [{}, {"a": "x"}], [{"a": 1}, [], None]),
    (record_of({"a": COUNT}, required=("a",)), [{"a": 1, "b": None}], [{}, {"a": 0}, [1]]),
]


@pytest.mark.parametrize(("kind", "good", "bad"), FITS, ids=[kind.words for kind, _, _ in FITS])
def test_kinds(kind: Kind, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check_fields({"field": value}, {"field": kind, "other": FLAG}, "here")
    for value in bad:
        with pytest.raises(InputError, match="^here: field is .*; it must be ") as refused:
            check_fields({"field": value}, {"field": kind}, "here")
        assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


def test_a_message_is_one_short_line_whatever_is_in_it() -> None:
    """A path with line breaks, a field of a megabyte and a value that cannot be shown."""
    for value in ("a\nb\r\u2028c", "x" * 2**20, [10**5000], json.loads(nested(900))):
        with pytest.raises(InputError) as refused:
            check_fields({"field": value}, {"field": FLAG}, "a\nb")
        assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < 300
    message = str(InputError(f"runs/a\nb: {'x' * 5000}; give another"))
    assert message.startswith("runs/a b: xxx") and message.endswith("xxx; give another") and len(message) < 700
