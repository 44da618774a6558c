"""The kinds of values that are read from files which others may have written.

    KINDS = {"vocab_size": COUNT, "head_dim": optional(COUNT), "architectures": listed(TEXT)}
    check_fields(record, KINDS, where)

A value of another kind is an InputError of one line that names the place, the field and the value. Any package may
import this module.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.errors import InputError

LARGEST = 2**63 - 1  # whole numbers: beyond 64 bits neither tensors nor databases hold them


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


def _is_path(value: Any) -> bool:
    """Whether the system can be asked for this path. It may hold bytes that are no UTF-8, as Python writes them."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


PATH = Kind("a path", _is_path)
PLACE = Kind("a path or a name", _is_place)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
COUNT = whole(1)
