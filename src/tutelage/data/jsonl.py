"""Files of JSON objects: reading and writing.

    JSONL, or one JSON array -> (line number, object) for each object
    objects                  -> a JSONL file, written atomically

A file whose first character is `[` is read as one JSON array, whatever it is called. The line number of an element is
the line on which it starts. A line of JSONL and an element of an array have at most 16 MiB, and no more of the file
than that is in memory. A mistake in a file is an `InputError` that names the file, the line and the next move.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from tutelage.atomic import atomic_write
from tutelage.data.fields import kind_of
from tutelage.errors import InputError
from tutelage.json_file import (
    LONGEST_LINE,
    check_depth,
    lines_of,
    not_utf8,
    numbered_lines,
    opened,
    parse,
    too_deep,
    too_long,
)

CHUNK = 2**20  # bytes of an array that are read at once
CUT = 16  # characters between the end of a text that is cut short and where JSON's error is, unless a string is cut
_SPACE = re.compile(r"[ \t\r\n]*")  # what JSON counts as white space


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each object of a JSONL file or a JSON array. Raises InputError without any."""
    found = False
    with opened(path) as file:
        blank = _skip_blank(file)
        if file.peek(1).startswith(b"["):
            yield from ((n, _object(value, f"{path}, line {n}")) for n, value in _elements(file, path, blank + 1))
            return
        for number, line in numbered_lines(file, path, blank):
            if line.strip():
                found, where = True, f"{path}, line {number}"
                yield number, _object(parse_json(line, where), where)
    if not found:
        raise InputError(f"{path}: the file is empty; give a JSONL file with at least one record")


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write one object per line, atomically. Returns the number of records."""
    count = 0
    with atomic_write(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def parse_json(line: str, where: str) -> Any:
    return parse(line, where, "write one JSON object per line")


def read_text(path: Path) -> str:
    """The text of a file. The error names the line of the first byte that is not UTF-8."""
    return "".join(line for _, line in lines_of(path))


def _skip_blank(file: BufferedReader) -> int:
    """Read up to the first character that is not white space. Returns the number of line ends before it."""
    lines = 0
    while head := file.peek():
        skipped = file.read(len(head) - len(head.lstrip()))
        lines += skipped.count(b"\n")
        if len(skipped) < len(head):
            break
    return lines


class _Window:
    """The text of a JSON array, of which only a part is in memory: what has been read and not yet used."""

    def __init__(self, file: BufferedReader, path: Path, line: int):
        self.file, self.path = file, path
        self.text, self.at, self.line = "", 0, line  # `line` is that of text[at]
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.line}"

    def character(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            found = _SPACE.match(self.text, self.at)
            self.advance(found.end() if found else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read():
                return ""

    def advance(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def value(self) -> Any:
        """The JSON value that begins here; the window moves behind it."""
        while True:
            try:
                value, end = self._json.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                message, before, cut = error.msg, error.pos - self.at, self._is_cut(error)
            except RecursionError:
                raise InputError(too_deep(self.where)) from None
            except ValueError as error:  # a number of too many digits
                raise InputError(f"{self.where}: not JSON ({error}); give an array of objects") from None
            else:
                if end < len(self.text) or not self._read():  # at the end of the window a number may go on
                    break
                continue
            if not (cut and self._read()):  # here, because the error holds the whole text
                line = self.line + self.text.count("\n", self.at, self.at + before)
                raise InputError(f"{self.path}, line {line}: not JSON ({message}); give an array of objects")
        check_depth(value, self.text, self.where, self.at, end)
        self.advance(end)
        return value

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the error may only mean that the value goes on behind the window."""
        return error.msg.startswith("Unterminated string") or len(self.text) - error.pos <= CUT

    def _read(self) -> bool:
        """Drop what has been used, and read one more chunk. Returns False at the end of the file."""
        text = self.text[self.at :]
        if len(text) >= LONGEST_LINE:
            raise InputError(too_long(self.path, self.line))
        self.text, self.at = text, 0
        more = self._decoded(self.file.read(min(CHUNK, LONGEST_LINE - len(text))))
        self.text = ""
        text += more or ""  # nobody else holds it, so it grows in place
        self.text = text
        return more is not None

    def _decoded(self, data: bytes) -> str | None:
        """The text of the next bytes; None at the end of the file."""
        try:
            text = self._utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n") + error.object[: error.start].count(b"\n")
            raise InputError(not_utf8(self.path, line)) from None
        return text if data else None


def _elements(file: BufferedReader, path: Path, line: int) -> Iterator[tuple[int, Any]]:
    """(line, value) of each element of the JSON array that is the rest of the file."""
    window = _Window(file, path, line)
    window.character()
    window.advance(window.at + 1)
    if window.character() == "]":
        raise InputError(f"{path}: the array is empty; give a file with at least one record")
    while True:
        begin = window.line
        yield begin, window.value()
        separator = window.character()
        if separator not in ("]", ","):
            raise InputError(f'{window.where}: not JSON (no "," or "]" after an element of the array)')
        window.advance(window.at + 1)
        after = window.character()
        if separator == "]":
            break
    if after:
        raise InputError(f"{window.where}: there is more text after the array; give one array")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = "null" if value is None else kind_of(value)
        raise InputError(f"{where}: must be a JSON object, but it is {found}; every record is an object")
    return value
