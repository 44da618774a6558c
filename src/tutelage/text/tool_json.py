"""Reads one function call as JSON: where its text ends, and whether it is valid."""

import json
import re
from collections.abc import Collection
from typing import Any

INSIDE, OUTSIDE = re.compile(r'["\\]'), re.compile(r'["{}\[\]]')  # what matters inside and outside a string


class JsonEnd:
    """Finds where a JSON object in a growing text ends. Every character is read once."""

    def __init__(self, start: int):
        """start: the position of the object's opening brace."""
        self._at, self._depth, self._quoted = start, 0, False
        self._end: int | None = None

    def find(self, text: str) -> int | None:
        """The position after the object. None if it has not ended."""
        while self._end is None and (found := (INSIDE if self._quoted else OUTSIDE).search(text, self._at)):
            self._at = found.end()
            if found[0] == "\\":
                self._at += 1  # the next character is escaped
            elif found[0] == '"':
                self._quoted = not self._quoted
            else:
                self._depth += 1 if found[0] in "{[" else -1
                self._end = None if self._depth else self._at
        self._at = max(self._at, len(text))
        return self._end


def read_call(text: str, names: Collection[str], name: str | None, marked: bool) -> tuple[str, str] | None:
    """The name and the arguments (JSON) of a call; None if it is not valid.

    name: the function, if it stands before the object, which then holds the arguments alone. marked: a mark says that
    this is a call, so that it needs no arguments.
    """
    try:
        call = json.loads(text, parse_constant=_refuse)
        arguments = call if name else call.get("arguments", call.get("parameters", {} if marked else None))
        if isinstance(arguments, str):  # some models write the arguments as a text of JSON
            arguments = json.loads(arguments, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    name = name or call.get("name")
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    return name, as_json(arguments)


def as_json(value: Any) -> str:
    """JSON that UTF-8 can encode: without escapes, except in a value that contains a lone surrogate."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() or not re.search("[\ud800-\udfff]", text) else json.dumps(value)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
