"""The records passed between stages as files, with their readers.

    a JSONL file or a JSON array -> Document, Demonstration, Comparison, Feedback or Prompt, each field checked

Files, database exports and the API use the same shapes. The shapes of other tools are read, too: see
`data/conversations.py` and `data/pairs.py`. Unknown fields are ignored. A missing field or a wrong type is an
`InputError` that names the file, the line and the next move.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tutelage.data.conversations import conversation_in, prompt_field
from tutelage.data.fields import is_number, kind_of, labels, names_of, optional_fields, text_field
from tutelage.data.jsonl import read_jsonl
from tutelage.data.messages import Messages, content_text
from tutelage.data.pairs import UnpairedError, is_pair, pair_fields
from tutelage.data.thumbs import thumb_fields
from tutelage.errors import InputError

Record = TypeVar("Record")

MIN_RESPONSES, MAX_RESPONSES = 2, 9  # InstructGPT ranks 4 to 9 responses; 2 is the usual pair


class _Record:
    """Base class of the records."""

    def to_record(self) -> dict[str, Any]:
        """The JSON object of this record, without `where` and without fields that are None."""
        return {name: value for name, value in vars(self).items() if value is not None and name != "where"}


@dataclass(frozen=True)
class Document(_Record):
    """Text for pretraining: either plain `text` or the `messages` of a conversation."""

    text: str | None
    messages: Messages | None
    source: str
    lang: str | None = None
    conversation: str | None = None

    def plain_text(self) -> str:
        """The text for pretraining. A conversation becomes lines `role: text`."""
        if self.text is not None:
            return self.text
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages or [])


@dataclass(frozen=True)
class Demonstration(_Record):
    """A conversation whose assistant turns the model learns to imitate."""

    messages: Messages
    source: str
    annotator: str | None = None
    lang: str | None = None
    conversation: str | None = None
    ratings: dict[str, float] | None = None  # people's ratings of the whole conversation
    where: str = field(default="", compare=False)  # file and line, for complaints


@dataclass(frozen=True)
class Comparison(_Record):
    """One annotator's ranking of all K responses to one prompt."""

    prompt: Messages
    responses: list[str]
    ranks: list[int]  # 1 is best, ties are equal
    annotator: str
    source: str
    conversation: str | None = None
    where: str = field(default="", compare=False)  # file and line, for complaints


@dataclass(frozen=True)
class Feedback(_Record):
    """One annotator's thumb up or down for one response."""

    prompt: Messages
    response: str
    thumb: int  # 1 is up, -1 is down
    annotator: str
    source: str
    conversation: str | None = None
    where: str = field(default="", compare=False)  # file and line, for complaints


@dataclass(frozen=True)
class Prompt(_Record):
    """A conversation that ends with a user turn, for the assistant to respond to."""

    prompt: Messages
    source: str
    split: str
    conversation: str | None = None
    where: str = field(default="", compare=False)  # file and line, for complaints


def read_documents(paths: Iterable[Path]) -> list[Document]:
    return [document_from(record, where) for record, where in _records(paths)]


def read_demonstrations(paths: Iterable[Path]) -> list[Demonstration]:
    return [demonstration_from(record, where) for record, where in _records(paths)]


def read_comparisons(paths: Iterable[Path], unpaired: list[str] | None = None) -> list[Comparison]:
    """unpaired: takes the complaints about pairs that are no pair, which are left out; if None, the first is raised."""
    return _read(paths, lambda record, where: [comparison_from(record, where)], unpaired)


def read_feedback(
    paths: Iterable[Path], unpaired: list[str] | None = None, tied: list[str] | None = None
) -> list[Feedback]:
    """unpaired: as for `read_comparisons`. tied: takes file and line of each pair of equal responses."""
    return _read(paths, feedback_from, unpaired, tied)


def read_prompts(paths: Iterable[Path]) -> list[Prompt]:
    return [prompt_from(record, where) for record, where in _records(paths)]


def document_from(record: dict[str, Any], where: str) -> Document:
    """Check one corpus record. `where` (file and line) starts the error message, here and in the functions below."""
    if record.get("text") is not None:
        text, messages = text_field(record, "text", where), None
    elif record.get("messages") is not None or record.get("conversations") is not None:
        text, messages = None, conversation_in(record, where)
    else:
        raise InputError(f'{where}: a document needs "text" or "messages", but this one has {names_of(record)}')
    (source,) = labels(record, where, "source")
    return Document(text, messages, source, **optional_fields(record, where, "lang", "conversation"))


def demonstration_from(record: dict[str, Any], where: str) -> Demonstration:
    messages = conversation_in(record, where)
    user_spoke = False
    for message in messages:
        user_spoke = user_spoke or message["role"] == "user"
        if user_spoke and message["role"] == "assistant" and message["content"].strip():
            break
    else:
        raise InputError(
            f"{where}: the conversation has no assistant turn after a user turn, so there is nothing to imitate; "
            "add the answer or remove the line"
        )
    ratings = record.get("ratings")
    if ratings is not None and not (isinstance(ratings, dict) and all(is_number(v) for v in ratings.values())):
        raise InputError(f'{where}: "ratings" must be an object of numbers, but it is {kind_of(ratings)}')
    (source,) = labels(record, where, "source")
    others = optional_fields(record, where, "annotator", "lang", "conversation")
    return Demonstration(messages=messages, source=source, ratings=ratings, where=where, **others)


def comparison_from(record: dict[str, Any], where: str) -> Comparison:
    """A ranking or a pair. Raises UnpairedError for two conversations that are not responses to one prompt."""
    if record.get("responses") is None and record.get("ranks") is None:
        if not is_pair(record):
            raise InputError(
                f'{where}: neither a ranking ("prompt", "responses", "ranks") nor a pair ("chosen", "rejected"): '
                f"these are missing; this record has {names_of(record)}"
            )
        record = record | pair_fields(record, where)
    prompt = prompt_field(record, where)
    responses, ranks = record.get("responses"), record.get("ranks")
    if not isinstance(responses, list) or not all(isinstance(r, str | list) for r in responses):
        raise InputError(f'{where}: "responses" must be a list of strings, but it is {kind_of(responses)}')
    responses = [content_text(r, "responses", f"{where}, response {i}") for i, r in enumerate(responses, start=1)]
    if not MIN_RESPONSES <= len(responses) <= MAX_RESPONSES:
        raise InputError(
            f"{where}: a ranking has {MIN_RESPONSES} to {MAX_RESPONSES} responses, but this one has {len(responses)}"
        )
    if not isinstance(ranks, list) or not all(type(r) is int and r >= 1 for r in ranks):
        raise InputError(
            f'{where}: "ranks" must be a list of whole numbers from 1 (best), but it is {json.dumps(ranks)}'
        )
    if len(ranks) != len(responses):
        raise InputError(f"{where}: {len(responses)} responses but {len(ranks)} ranks; give each response one rank")
    annotator, source = labels(record, where, "annotator", "source")
    conversation = optional_fields(record, where, "conversation").get("conversation")
    return Comparison(prompt, responses, ranks, annotator, source, conversation, where)


def feedback_from(record: dict[str, Any], where: str) -> list[Feedback]:
    """The thumbs of a record: one, or two for a pair. Raises UnpairedError as `comparison_from` does."""
    annotator, source = labels(record, where, "annotator", "source")
    conversation = optional_fields(record, where, "conversation").get("conversation")
    return [
        Feedback(prompt_field(one, where), one["response"], one["thumb"], annotator, source, conversation, where)
        for one in thumb_fields(record, where)
    ]


def prompt_from(record: dict[str, Any], where: str) -> Prompt:
    source, split = labels(record, where, "source", "split")
    conversation = optional_fields(record, where, "conversation").get("conversation")
    return Prompt(prompt_field(record, where), source, split, conversation, where)


def _read(
    paths: Iterable[Path],
    check: Callable[[dict[str, Any], str], list[Record]],
    unpaired: list[str] | None,
    tied: list[str] | None = None,
) -> list[Record]:
    found: list[Record] = []
    for record, where in _records(paths):
        try:
            checked = check(record, where)
            if not checked and tied is not None:
                tied.append(where)
            found += checked
        except UnpairedError as error:
            if unpaired is None:
                raise
            unpaired.append(str(error))
    return found


def _records(paths: Iterable[Path]) -> Iterator[tuple[dict[str, Any], str]]:
    return ((record, f"{path}, line {number}") for path in paths for number, record in read_jsonl(path))
