"""Checks for the fields of a record.

Each check returns the value or raises an `InputError`. Every message starts with `where`: the file and the line.
"""

from typing import Any

from tutelage.errors import InputError


def text_field(record: dict[str, Any], name: str, where: str) -> str:
    text = record.get(name)
    if not isinstance(text, str):
        raise InputError(f'{where}: "{name}" must be a string, but it is {kind_of(text)}')
    return check_text(text, where)


def check_text(text: str, where: str) -> str:
    """Refuse lone surrogates. JSON allows them, but no text encoding does, so every later step would fail."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: the text has half a surrogate pair at character {error.start}; "
                "save the file again with a tool that writes whole characters"
            ) from None
    return text


def labels(record: dict[str, Any], where: str, *names: str) -> list[str]:
    """String fields that say where a record comes from, "unknown" if absent or null: many files omit them."""
    known = optional_fields(record, where, *names)
    return [known.get(name, "unknown") for name in names]


def optional_fields(record: dict[str, Any], where: str, *names: str) -> dict[str, Any]:
    """The string fields among `names` that the record has."""
    return {name: text_field(record, name, where) for name in names if record.get(name) is not None}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def kind_of(value: Any) -> str:
    """The JSON type of a value, in words for an error message."""
    if value is None:
        return "missing"
    if isinstance(value, list) and not value:
        return "an empty list"
    number = "a number"
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: number, float: number}
    return kinds.get(type(value), type(value).__name__)


def names_of(record: dict[str, Any]) -> str:
    """The names of a record's fields, for an error message."""
    return ", ".join(f'"{name}"' for name in record) or "no field at all"
