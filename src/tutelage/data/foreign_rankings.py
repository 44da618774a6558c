"""Rankings from other sources -> comparisons.

The file is JSONL or one JSON array. Three shapes are accepted: our own comparison; a ShareGPT conversation with a
`chosen` and a `rejected` response; and such a pair with `messages` or a `prompt`. A pair is a ranking with K = 2.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.data.fields import check_text
from tutelage.data.records import (
    Comparison,
    Messages,
    comparison_from,
    parse_json,
    prompt_field,
    read_jsonl,
    read_text,
)
from tutelage.errors import InputError

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_rankings(path: Path) -> list[Comparison]:
    """Read the file given to `tutelage rank --from FILE`."""
    return [ranking_from(record, where) for record, where in _records(path)]


def ranking_from(record: dict[str, Any], where: str) -> Comparison:
    """Convert one record of any accepted shape. Raises InputError if it has none of them."""
    if "responses" in record or "ranks" in record:
        return comparison_from(record, where)
    if "chosen" not in record or "rejected" not in record:
        raise InputError(
            f'{where}: neither a ranking ("prompt", "responses", "ranks") nor a pair ("chosen", "rejected"); '
            f"its fields: {', '.join(record) or 'none'}"
        )
    responses = [_response(record[name], name, where) for name in ("chosen", "rejected")]
    labels: dict[str, Any] = {name: record[name] for name in ("annotator", "source", "conversation") if name in record}
    pair = {"prompt": _prompt(record, where), "responses": responses, "ranks": [1, 2]}
    return comparison_from({**pair, **labels}, where)


def _records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from ((record, f"{path}, line {number}") for number, record in read_jsonl(path))
        return
    parse_json(text, str(path))  # refuse a broken file before its first record is used
    decoder, at, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0  # newlines are counted up to `counted`
    while (at := _skip(text, at)) < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        record, at = decoder.raw_decode(text, at)
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {line}: must be a JSON object; give an array of objects")
        yield record, f"{path}, line {line}"
    if not counted:
        raise InputError(f"{path}: the list is empty; give a file with at least one record")


def _skip(text: str, at: int) -> int:
    """The position of the next value, or of the closing bracket, in a valid JSON array."""
    while at < len(text) and text[at] in ", \t\r\n":
        at += 1
    return at


def _prompt(record: dict[str, Any], where: str) -> Messages:
    """The turns before the two responses, with our role names."""
    name = next((n for n in ("conversations", "messages", "prompt") if n in record), None)
    turns = record[name] if name else None
    if isinstance(turns, str):
        return prompt_field({"prompt": [{"role": "user", "content": check_text(turns, where)}]}, where)
    if not isinstance(turns, list):
        raise InputError(f'{where}: a pair needs its prompt as "conversations", "messages" or "prompt"')
    return prompt_field({"prompt": [_message(turn, where) for turn in turns]}, where)


def _message(turn: Any, where: str) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn  # our own format; prompt_field reports anything else
    role = _SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise InputError(f'{where}: "from" must be human, gpt or system, but it is {json.dumps(turn["from"])}')
    return {"role": role, "content": turn.get("value")}


def _response(response: Any, name: str, where: str) -> str:
    """The text of a response given as a string, as a message in either format, or as a list with one of these."""
    if isinstance(response, list) and len(response) == 1:
        response = response[0]
    if isinstance(response, dict):
        response = response.get("value", response.get("content"))
    if not isinstance(response, str):
        raise InputError(f'{where}: "{name}" must be a string or one message')
    return response
