"""Python packages with dialogues -> conversations between two people, and questions with answers.

`chitchat-dataset` (MIT): 7,168 conversations between strangers, with the speakers' own ratings. Only conversations
between two people are kept. Consecutive messages of one person are one turn. The person who opens is the user, the
partner the assistant. `chatterbot-corpus` (BSD): questions and answers. An entry with more than two items is one
question with alternative answers.
Both packages are in the extra [demo] and are needed only for reading. Nothing is downloaded.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.data.clean import clean_line
from tutelage.data.messages import Messages
from tutelage.data.splits import normalised
from tutelage.errors import InputError

CHITCHAT = "chitchat-dataset"
CHATTERBOT = "chatterbot-corpus"
LANGUAGES = {"english": "en", "chinese": "zh"}


@dataclass(frozen=True)
class Conversation:
    """A conversation between two people."""

    id: str
    people: tuple[str, str]  # the person who opens, the partner
    messages: Messages  # cleaned; user and assistant alternate, starting with the user
    ratings: dict[str, float] | None


@dataclass(frozen=True)
class QuestionAnswers:
    """A question with one or more alternative answers."""

    question: str
    answers: tuple[str, ...]
    lang: str


def chitchat_file() -> Path:
    return _package("chitchat_dataset") / "dataset.json"


def chatterbot_files(language: str) -> list[Path]:
    return sorted((_package("chatterbot_corpus") / "data" / language).glob("*.yml"))


def read_chitchat(limit: int = 0) -> tuple[list[Conversation], Counter[str]]:
    """The first `limit` conversations with two speakers (0: all), and counts of what was dropped and why."""
    raw = json.loads(chitchat_file().read_text(encoding="utf-8"))
    conversations: list[Conversation] = []
    counts: Counter[str] = Counter()
    for id, conversation in raw.items():
        if limit and len(conversations) == limit:
            break
        counts["conversations"] += 1
        people, messages = _turns(message for group in conversation["messages"] for message in group)
        if len(people) != 2:
            counts["dropped_not_two_speakers"] += 1
        elif len(messages) < 2:
            counts["dropped_empty"] += 1
        else:
            conversations.append(Conversation(id, (people[0], people[1]), messages, conversation.get("ratings")))
    counts["kept"] = len(conversations)
    return conversations, counts


def read_chatterbot(limit: int = 0) -> tuple[list[QuestionAnswers], Counter[str]]:
    """The first `limit` entries of each language (0: all), English before Chinese, and counts."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, if built in, is ten times faster
    counts: Counter[str] = Counter()
    entries: list[QuestionAnswers] = []
    for language, lang in LANGUAGES.items():
        raw = [
            entry
            for path in chatterbot_files(language)
            for entry in yaml.load(path.read_text(encoding="utf-8"), Loader=loader).get("conversations") or []
        ]
        entries += _merged((_entry(entry, lang, counts) for entry in raw[: limit or None]), lang, counts)
    return entries, counts


def _turns(messages: Iterable[dict[str, Any]]) -> tuple[list[str], Messages]:
    """Speakers in order of their first message, and the turns: consecutive messages of one speaker are joined."""
    people: list[str] = []
    runs: list[tuple[str, list[str]]] = []
    for message in messages:
        sender, text = message["sender"], clean_line(message["text"])
        if not text:
            continue
        if sender not in people:
            people.append(sender)
        if runs and runs[-1][0] == sender:
            runs[-1][1].append(text)
        else:
            runs.append((sender, [text]))
    role = dict(zip(people, ("user", "assistant"), strict=False))
    if len(people) != 2:
        return people, []
    return people, [{"role": role[sender], "content": " ".join(texts)} for sender, texts in runs]


def _entry(entry: Any, lang: str, counts: Counter[str]) -> list[str]:
    """The question followed by its answers; empty if the entry has fewer than two texts or an empty one."""
    texts = [clean_line(text) for text in _texts(entry, lang, counts)]
    counts[f"{lang}.entries"] += 1
    if len(texts) < 2 or not all(texts):
        counts[f"{lang}.dropped_entries"] += 1
        return []
    return texts


def _merged(entries: Iterable[list[str]], lang: str, counts: Counter[str]) -> list[QuestionAnswers]:
    """One entry per question. Some question/answer pairs are in the files more than a hundred times."""
    questions: dict[str, str] = {}
    answers: dict[str, dict[str, None]] = {}
    pairs = 0
    for question, *alternatives in filter(None, entries):
        key = normalised(question)
        questions.setdefault(key, question)
        answers.setdefault(key, {}).update(dict.fromkeys(alternatives))
        pairs += len(alternatives)
    merged = [QuestionAnswers(question, tuple(answers[key]), lang) for key, question in questions.items()]
    counts[f"{lang}.questions"] = len(merged)
    counts[f"{lang}.pairs"] = sum(len(entry.answers) for entry in merged)
    counts[f"{lang}.duplicate_pairs"] = pairs - counts[f"{lang}.pairs"]
    return merged


def _texts(entry: Any, lang: str, counts: Counter[str]) -> Iterator[str]:
    # YAML parses an unquoted 1984, Yes or "a: b" as a number, a boolean or a mapping.
    for item in entry if isinstance(entry, list) else []:
        if isinstance(item, str):
            yield item
        elif isinstance(item, bool):
            counts[f"{lang}.coerced_items"] += 1
            yield "Yes" if item else "No"
        elif isinstance(item, int | float):
            counts[f"{lang}.coerced_items"] += 1
            yield str(item)
        elif isinstance(item, dict) and len(item) == 1 and all(isinstance(v, str) for v in item.values()):
            counts[f"{lang}.coerced_items"] += 1
            yield ": ".join(str(part) for pair in item.items() for part in pair)
        else:
            counts[f"{lang}.dropped_items"] += 1


def _package(name: str) -> Path:
    """The folder of a package, found without importing the package."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f'the package {name.replace("_", "-")} is not installed; run: pip install "tutelage[demo]"')
    return Path(spec.origin).parent
