"""The records passed between stages as JSONL files, with their readers and writers.

    a JSONL file -> Document, Demonstration, Comparison, Feedback or Prompt, each field checked
    records      -> a JSONL file, written atomically

Files, database exports and the API use the same shapes. Unknown fields are ignored, so that files from other sources
can be read. A missing field or a wrong type is an `InputError` that names the file, the line and the next move.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tutelage.atomic import atomic_write
from tutelage.data.fields import check_text, is_number, kind_of, labels, names_of, optional_fields, text_field
from tutelage.errors import InputError

Messages = list[dict[str, str]]  # {"role": "system" | "user" | "assistant", "content": str}

ROLES = ("system", "user", "assistant")
MIN_RESPONSES, MAX_RESPONSES = 2, 9  # InstructGPT ranks 4 to 9 responses; 2 is the usual pair

Record = TypeVar("Record")


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


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line that is not blank. Raises InputError if all lines are blank."""
    empty = True
    for number, line in _lines(path):
        if line.strip():
            empty = False
            yield number, _parse(line, f"{path}, line {number}")
    if empty:
        raise InputError(f"{path}: the file is empty; give a JSONL file with at least one record")


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write one object per line, atomically. Returns the number of records."""
    count = 0
    with atomic_write(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_documents(paths: Iterable[Path]) -> list[Document]:
    return _read(paths, document_from)


def read_demonstrations(paths: Iterable[Path]) -> list[Demonstration]:
    return _read(paths, demonstration_from)


def read_comparisons(paths: Iterable[Path]) -> list[Comparison]:
    return _read(paths, comparison_from)


def read_feedback(paths: Iterable[Path]) -> list[Feedback]:
    return _read(paths, feedback_from)


def read_prompts(paths: Iterable[Path]) -> list[Prompt]:
    return _read(paths, prompt_from)


def document_from(record: dict[str, Any], where: str) -> Document:
    """Check one corpus record. `where` (file and line) starts the error message, here and in the functions below."""
    if "text" in record:
        text, messages = text_field(record, "text", where), None
    elif "messages" in record:
        text, messages = None, messages_field(record, "messages", where)
    else:
        raise InputError(f'{where}: a document needs "text" or "messages", but this one has {names_of(record)}')
    (source,) = labels(record, where, "source")
    return Document(text, messages, source, **optional_fields(record, where, "lang", "conversation"))


def instruction_messages(record: dict[str, Any], where: str) -> Messages:
    """An instruction record (Wang et al. 2023, Self-Instruct) as two turns. An input follows the instruction."""
    instruction = text_field(record, "instruction", where)
    context = text_field(record, "input", where) if record.get("input") else ""
    answer = text_field(record, "output", where)
    question = f"{instruction}\n\n{context}" if context else instruction
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def demonstration_from(record: dict[str, Any], where: str) -> Demonstration:
    messages = (
        instruction_messages(record, where) if "instruction" in record else messages_field(record, "messages", where)
    )
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
    return Demonstration(messages=messages, source=source, ratings=ratings, **others)


def comparison_from(record: dict[str, Any], where: str) -> Comparison:
    prompt = prompt_field(record, where)
    responses, ranks = record.get("responses"), record.get("ranks")
    if not isinstance(responses, list) or not all(isinstance(r, str) for r in responses):
        raise InputError(f'{where}: "responses" must be a list of strings, but it is {kind_of(responses)}')
    for response in responses:
        check_text(response, where)
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


def feedback_from(record: dict[str, Any], where: str) -> Feedback:
    prompt, response = prompt_field(record, where), text_field(record, "response", where)
    thumb = record.get("thumb")
    if type(thumb) is not int or thumb not in (1, -1):
        raise InputError(f'{where}: "thumb" must be 1 (up) or -1 (down), but it is {json.dumps(thumb)}')
    annotator, source = labels(record, where, "annotator", "source")
    conversation = optional_fields(record, where, "conversation").get("conversation")
    return Feedback(prompt, response, thumb, annotator, source, conversation, where)


def prompt_from(record: dict[str, Any], where: str) -> Prompt:
    source, split = labels(record, where, "source", "split")
    conversation = optional_fields(record, where, "conversation").get("conversation")
    return Prompt(prompt_field(record, where), source, split, conversation, where)


def prompt_field(record: dict[str, Any], where: str) -> Messages:
    prompt = messages_field(record, "prompt", where)
    if prompt[-1]["role"] != "user":
        raise InputError(f"{where}: the prompt ends with a turn of role {prompt[-1]['role']}; end it with a user turn")
    return prompt


def messages_field(record: dict[str, Any], name: str, where: str) -> Messages:
    messages = record.get(name)
    if not isinstance(messages, list) or not messages:
        raise InputError(f'{where}: "{name}" must be a list of at least one message, but it is {kind_of(messages)}')
    for turn, message in enumerate(messages, start=1):
        spot = f"{where}, message {turn}"
        if not isinstance(message, dict):
            raise InputError(f'{spot}: must be an object with "role" and "content", but it is {kind_of(message)}')
        if message.get("role") not in ROLES:
            role = json.dumps(message.get("role"))
            raise InputError(f'{spot}: "role" must be one of {", ".join(ROLES)}, but it is {role}')
        text_field(message, "content", spot)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


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


def _parse(line: str, where: str) -> dict[str, Any]:
    record = parse_json(line, where)
    if not isinstance(record, dict):
        raise InputError(f"{where}: must be a JSON object, but it is {kind_of(record)}; write one object per line")
    return record


def _read(paths: Iterable[Path], check: Callable[[dict[str, Any], str], Record]) -> list[Record]:
    return [check(record, f"{path}, line {number}") for path in paths for number, record in read_jsonl(path)]
