"""Rankings made elsewhere -> comparisons.

Three shapes are understood, as JSONL or as one JSON array: our own ranking; a conversation in ShareGPT's style with a
`chosen` and a `rejected` answer; the same with `messages` or a plain text `prompt`. A pair is a ranking with K = 2.
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
    """Read `tutelage rank --from FILE`."""
    return [ranking_from(record, where) for record, where in _records(path)]


def ranking_from(record: dict[str, Any], where: str) -> Comparison:
    """One record of any of the shapes."""
    if "responses" in record or "ranks" in record:
        return comparison_from(record, where)
    if "chosen" not in record or "rejected" not in record:
        raise InputError(
            f'{where}: neither a ranking ("prompt", "responses", "ranks") nor a pair ("chosen", "rejected"); '
            f"it has {', '.join(record) or 'no field at all'}"
        )
    responses = [_answer(record[name], name, where) for name in ("chosen", "rejected")]
    labels: dict[str, Any] = {name: record[name] for name in ("annotator", "source", "conversation") if name in record}
    pair = {"prompt": _context(record, where), "responses": responses, "ranks": [1, 2]}
    return comparison_from({**pair, **labels}, where)


def _records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from ((record, f"{path}, line {number}") for number, record in read_jsonl(path))
        return
    parse_json(text, str(path))  # so that a broken file is refused before its first record is used
    decoder, at, line, seen = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while (at := _skip(text, at)) < len(text) and text[at] != "]":
        line, seen = line + text.count("\n", seen, at), at
        record, at = decoder.raw_decode(text, at)
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {line}: must be a JSON object; give an array of objects")
        yield record, f"{path}, line {line}"
    if not seen:
        raise InputError(f"{path}: the list is empty; give a file with at least one record")


def _skip(text: str, at: int) -> int:
    """To the next value of an array that is known to be sound."""
    while at < len(text) and text[at] in ", \t\r\n":
        at += 1
    return at


def _context(record: dict[str, Any], where: str) -> Messages:
    """The turns before the two answers, in our roles."""
    name = next((n for n in ("conversations", "messages", "prompt") if n in record), None)
    turns = record[name] if name else None
    if isinstance(turns, str):
        return prompt_field({"prompt": [{"role": "user", "content": check_text(turns, where)}]}, where)
    if not isinstance(turns, list):
        raise InputError(f'{where}: a pair needs its context as "conversations", "messages" or "prompt"')
    return prompt_field({"prompt": [_message(turn, where) for turn in turns]}, where)


def _message(turn: Any, where: str) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn  # our own form, or something prompt_field explains
    role = _SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise InputError(f'{where}: "from" must be human, gpt or system, it is {json.dumps(turn["from"])}')
    return {"role": role, "content": turn.get("value")}


def _answer(answer: Any, name: str, where: str) -> str:
    """A text, or a message of either style, or a list that holds just one."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, dict):
        answer = answer.get("value", answer.get("content"))
    if not isinstance(answer, str):
        raise InputError(f'{where}: "{name}" must be a text or one message')
    return answer
