"""JSON that others may have written, read within limits.

    lines_of(path)              the lines of a file, each of limited length
    parse(text, where, move)    a value of limited depth
    read_object(path)           the object in a file of limited size

Whatever does not fit is an InputError of one line that names the file and the line. Any package may import this module.
"""

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from tutelage.errors import InputError

LONGEST_LINE = 2**24  # bytes of one line of JSONL, or of one element of a JSON array
LARGEST_OBJECT = 2**26  # bytes of a file that holds one object; the largest index files of models take 2**24
DEEPEST = 64  # levels of nesting


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """The file, after its byte order mark. Raises InputError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            if file.peek(3).startswith(codecs.BOM_UTF8):
                file.read(3)
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line). Raises InputError for a file that cannot be read, is not UTF-8, or has too long a line."""
    with opened(path) as file:
        yield from numbered_lines(file, path)


def numbered_lines(file: BufferedReader, path: Path, before: int = 0) -> Iterator[tuple[int, str]]:
    """The same for an open file, of which `before` lines have been read."""
    # Bytes, so that a line ends at \\n only, as JSONL requires, and the error can name the line that is not UTF-8.
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), before + 1):
        if len(line) > LONGEST_LINE:
            raise InputError(too_long(path, number))
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(not_utf8(path, number, error.start)) from None


def too_long(path: Path, line: int) -> str:
    return f"{path}, line {line}: longer than {LONGEST_LINE >> 20} MiB; write one record per line, and split long texts"


def not_utf8(path: Path, line: int, byte: int | None = None) -> str:
    at = "" if byte is None else f" at byte {byte} of the line"
    return f"{path}, line {line}: not UTF-8{at}; convert the file to UTF-8"


def parse(text: str, where: str, move: str, problem: str = "not JSON") -> Any:
    """The JSON value in a text. Raises InputError if it is none, or nested too deeply; `move` is the next move."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise InputError(too_deep(where)) from None
    except ValueError as error:
        raise InputError(f"{where}: {problem} ({error}); {move}") from None
    check_depth(value, text, where)
    return value


def check_depth(value: Any, text: str, where: str, start: int = 0, end: int | None = None) -> None:
    """Raises InputError for more than DEEPEST levels: deep values would overflow the stack of what reads them later.

    text[start:end] is the value's JSON.
    """
    if text.count("[", start, end) + text.count("{", start, end) <= DEEPEST:
        return
    level = _inside([value])
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise InputError(too_deep(where))


def _inside(value: Any) -> list[Any]:
    """The arrays and objects directly inside."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, dict | list)]


def too_deep(where: str) -> str:
    return f"{where}: not JSON that is read here: nested more than {DEEPEST} levels deep; flatten it"


def read_object(path: Path, move: str = "copy the model or make it again") -> dict[str, Any]:
    """The JSON object in a file. Raises InputError if the file holds none, is too large or cannot be read."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_OBJECT + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {move}") from None
    if len(content) > LARGEST_OBJECT:
        raise InputError(f"{path}: larger than {LARGEST_OBJECT >> 20} MiB, too large for what it should hold; {move}")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not readable as JSON ({error}); {move}") from None
    value = parse(text, str(path), move, "not readable as JSON")
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object; {move}")
    return value
