"""One field of a record at a time: as it should be, or an `InputError` that says what it is instead.

Every message opens with `where`: the file and the line.
"""

from typing import Any

from tutelage.errors import InputError


def text_field(record: dict[str, Any], name: str, where: str) -> str:
    text = record.get(name)
    if not isinstance(text, str):
        raise InputError(f'{where}: "{name}" must be a text, it is {kind_of(text)}')
    return check_text(text, where)


def check_text(text: str, where: str) -> str:
    """Half a surrogate pair is legal in JSON but in no encoding of text: every later step would fail on it."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: the text holds half a surrogate pair at character {error.start}; "
                "save the file again with a tool that writes whole characters"
            ) from None
    return text


def labels(record: dict[str, Any], where: str, *names: str) -> list[str]:
    """Short texts that say where a record comes from; a hand-written file may leave them out."""
    return [text_field({name: record.get(name, "unknown")}, name, where) for name in names]


def optional_fields(record: dict[str, Any], where: str, *names: str) -> dict[str, Any]:
    return {name: text_field(record, name, where) for name in names if record.get(name) is not None}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def kind_of(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, list) and not value:
        return "an empty list"
    number = "a number"
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: number, float: number}
    return kinds.get(type(value), type(value).__name__)


def names_of(record: dict[str, Any]) -> str:
    return ", ".join(f'"{name}"' for name in record) or "no field at all"
