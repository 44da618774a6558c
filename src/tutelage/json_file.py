"""JSON that others may have written: read within limits, and checked field by field.

    lines_of(path)                    the lines of a file, each of limited length
    parse(text, where, move)          a value of limited depth
    read_object(path)                 the object in a file of limited size
    check_fields(record, kinds, where)

    kinds = {"vocab_size": COUNT, "head_dim": optional(COUNT), "architectures": listed(TEXT)}

Whatever does not fit is an InputError of one line that names the place, the field and its value. Any package may import
this module.
"""

import codecs
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from tutelage.errors import InputError

LONGEST_LINE = 2**24  # bytes of one line of JSONL, or of one element of a JSON array
LARGEST_OBJECT = 2**26  # bytes of a file that holds one object; the largest index files of models take 2**24
DEEPEST = 64  # levels of nesting
LARGEST = 2**63 - 1  # whole numbers: beyond 64 bits neither tensors nor databases hold them


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


@dataclass(frozen=True)
class Kind:
    """A kind of JSON value."""

    words: str  # as it stands in an error message
    fits: Callable[[Any], bool]


def check_fields(record: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    """Raises InputError for the first field of another kind. Absent fields and unknown ones are not checked."""
    for name, kind in kinds.items():
        if name in record and not kind.fits(record[name]):
            raise InputError(f"{where}: {name} is {shown(record[name])}; it must be {kind.words}")


def shown(value: Any) -> str:
    """A value in an error message: its beginning, in one line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of more than 4,300 digits, or nested too deeply
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def whole(least: int = 0, most: int = LARGEST) -> Kind:
    """Whole numbers in a range; true and 3.0 are none."""
    words = f"of at least {least}" if most == LARGEST else f"from {least} to {most}"
    return Kind(f"a whole number {words}", lambda value: type(value) is int and least <= value <= most)


def number(above: float = -math.inf) -> Kind:
    """Finite numbers above a limit."""
    words = "a finite number" if above == -math.inf else f"a finite number above {above:g}"
    return Kind(words, lambda value: is_finite(value) and value > above)


def is_finite(value: Any) -> bool:
    """Whether this is a number, neither NaN nor infinite, and not too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -1e308 < value < 1e308


def optional(kind: Kind) -> Kind:
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.fits(value))


def either(*kinds: Kind) -> Kind:
    return Kind(" or ".join(kind.words for kind in kinds), lambda value: any(kind.fits(value) for kind in kinds))


def listed(kind: Kind) -> Kind:
    return Kind(f"a list, each {kind.words}", lambda value: isinstance(value, list) and all(map(kind.fits, value)))


def mapped(kind: Kind) -> Kind:
    return Kind(
        f"an object, each value {kind.words}",
        lambda value: isinstance(value, dict) and all(map(kind.fits, value.values())),
    )


def record_of(kinds: Mapping[str, Kind], required: tuple[str, ...] = ()) -> Kind:
    """Objects whose fields are of these kinds."""
    words = ", ".join(f"{name} {kind.words}" for name, kind in kinds.items())
    return Kind(
        f"an object ({words})",
        lambda value: (
            isinstance(value, dict)
            and all(name in value for name in required)
            and all(kind.fits(value[name]) for name, kind in kinds.items() if name in value)
        ),
    )


STRING = Kind("a string", lambda value: isinstance(value, str))


def _is_text(value: Any) -> bool:
    """Whether this is a string without half a surrogate pair, which JSON allows and no text encoding does."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


TEXT = Kind("a string", _is_text)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))


def is_file_name(text: str) -> bool:
    """Whether a text can be the name of a file in a folder: no path, and not longer than file systems allow."""
    return text not in ("", ".", "..") and not {"/", "\0"} & {*text} and len(text.encode("utf-8", "replace")) <= 255


def _is_place(value: Any) -> bool:
    return (
        _is_text(value)
        and "\0" not in value
        and len(value) <= 1000
        and all(len(p.encode()) <= 255 for p in value.split("/"))
    )


PLACE = Kind("a path or a name", _is_place)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
COUNT = whole(1)
