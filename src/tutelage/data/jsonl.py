"""Files of JSON objects: reading and writing.

    JSONL, or one JSON array -> (line number, object) for each object
    objects                  -> a JSONL file, written atomically

A file whose first character is `[` is read as one JSON array, whatever it is called. The line number of an element is
the line on which it starts. A mistake in a file is an `InputError` that names the file, the line and the next move.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from tutelage.atomic import atomic_write
from tutelage.data.fields import kind_of
from tutelage.errors import InputError

_SPACE = re.compile(r"[ \t\r\n]*")  # what JSON counts as white space


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each object of a JSONL file or a JSON array. Raises InputError without any."""
    lines = _lines(path)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        raise InputError(f"{path}: the file is empty; give a JSONL file with at least one record")
    if first[1].lstrip().startswith("["):
        text = "\n" * (first[0] - 1) + first[1] + "".join(line for _, line in lines)
        yield from ((number, _object(value, f"{path}, line {number}")) for number, value in _elements(text, path))
        return
    for number, line in chain([first], lines):
        if line.strip():
            where = f"{path}, line {number}"
            yield number, _object(parse_json(line, where), where)


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write one object per line, atomically. Returns the number of records."""
    count = 0
    with atomic_write(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def parse_json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); write one JSON object per line") from None


def read_text(path: Path) -> str:
    """The text of a file. The error names the line of the first byte that is not UTF-8."""
    return "".join(line for _, line in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    # Decode line by line, so that the error can name the line. Reading bytes splits at \n only, as JSONL requires.
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}, line {number}: not UTF-8 at byte {error.start} of the line; convert the file to UTF-8"
                    ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _elements(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of each element of the JSON array that is the whole text."""
    decoder, line, counted = json.JSONDecoder(), 1, 0  # newlines are counted up to `counted`
    at = _skip(text, text.index("[") + 1)
    if text[at : at + 1] == "]":
        raise InputError(f"{path}: the array is empty; give a file with at least one record")
    while True:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg}); give an array of objects") from None
        except (ValueError, RecursionError) as error:  # a number of too many digits, or nested too deeply
            raise InputError(f"{path}, line {line}: not JSON ({error}); give an array of objects") from None
        yield line, value
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise InputError(f'{path}, line {_line(text, at)}: not JSON (no "," or "]" after an element of the array)')
        at = _skip(text, at + 1)
    if (end := _skip(text, at + 1)) < len(text):
        raise InputError(f"{path}, line {_line(text, end)}: there is more text after the array; give one array")


def _skip(text: str, at: int) -> int:
    """The position of the next character that is not white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = "null" if value is None else kind_of(value)
        raise InputError(f"{where}: must be a JSON object, but it is {found}; every record is an object")
    return value
