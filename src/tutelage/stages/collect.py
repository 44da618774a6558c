"""The demo's data from real dialogues: corpus, demonstrations, prompts, and the simulated panel.

    packages of the extra [demo] -> out/{corpus,demonstrations,prompts}.<split>.jsonl, panel.json, report.json

The stage reads, cleans, redacts, splits and writes. No person and no question is in two splits; conversations that
would cross two splits are dropped. The panel's word counts come from the training dialogues alone. report.json holds
all counts. InstructGPT's prompts came from customers and its demonstrations from hired labelers; ours come from people
chatting.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from tutelage.atomic import atomic_write
from tutelage.data import corpus, demonstrations, prompts, sources, splits
from tutelage.data.clean import distinct
from tutelage.data.jsonl import write_jsonl
from tutelage.data.panel import Panel, constants_hash, rating_correlation
from tutelage.data.privacy import redact
from tutelage.data.records import Demonstration, Document, Prompt
from tutelage.data.sources import Conversation, QuestionAnswers
from tutelage.errors import InputError
from tutelage.options import Advanced, Natural
from tutelage.runs.ending import Ending, Figure, command
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run, RunConfig

SPLITS = ("train", "valid", "test")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CollectConfig(RunConfig):
    """What is taken from the sources. Of these settings only `limit` affects the splits, so runs share their test set.

    The seed has no effect.
    """

    limit: Natural = 0
    """Use only this many two-speaker conversations, and this many question entries per language; 0 is all."""
    train_prompts: Natural = 8_192
    """Number of training prompts to keep, chosen by hash. Ranking and PPO draw from them."""
    prompts_per_conversation: Advanced[Natural] = 8
    """Maximum number of training prompts from one conversation, so that long ones do not dominate."""


def collect(out: Path, config: CollectConfig = CollectConfig()) -> None:
    """Gather, clean, redact and split the demo's dialogues.

    out: Folder to write the data files to.

    Example: tutelage collect --out runs/demo/data
    """
    with Run(out, stage="collect", config=config, inputs=source_files()) as run:
        if run.finished:
            return
        run.progress.update(0.0)
        report = write_data(out, config)
        run.progress.update(1.0)
        counts = {f"{split}_conversations": report["conversations"][split] for split in SPLITS}
        dropped = {"crossing": report["conversations"].get("crossing", 0), "redactions": report["redactions"]}
        run.finish(counts | dropped, ending(out, report))


def ending(out: Path, report: dict[str, Any]) -> Ending:
    sizes = ", ".join(f"{report['conversations'][split]:,} {split}" for split in SPLITS)
    corpus = out / "corpus.train.jsonl"
    return Ending(
        f"{sum(report['written'].values()):,} records in {len(report['written'])} files, from real dialogues",
        [
            Figure("conversations", sum(report["conversations"][split] for split in SPLITS), note=sizes, format=",d"),
            Figure("personal details redacted", sum(report["redactions"].values()), format=",d"),
        ],
        next=[command("tokenizer", "--corpus", corpus, "--out", "...")],
    )


def source_files() -> Inputs:
    """The files to read from the installed packages."""
    pairs = [path for language in sources.LANGUAGES for path in sources.chatterbot_files(language)]
    return {"chitchat": sources.chitchat_file(), "chatterbot": pairs}


def write_data(out: Path, config: CollectConfig) -> dict[str, Any]:
    """Write the data files to `out`, each whole or not at all, and return the report."""
    conversations, counts = sources.read_chitchat(config.limit)
    entries, entry_counts = sources.read_chatterbot(config.limit)
    redactions: Counter[str] = Counter()
    conversations = [_redacted_conversation(c, redactions) for c in conversations]
    entries = [_redacted_entry(e, redactions) for e in entries]
    sides = splits.split_people([c.people for c in conversations])
    talks = {split: [c for c, side in zip(conversations, sides, strict=True) if side == split] for split in SPLITS}
    questions = {split: [e for e in entries if splits.split_question(e.question) == split] for split in SPLITS}
    _check_splits(talks)
    written, duplicates = _write_records(out, talks, questions, config)
    panel = Panel.fit(_exchanges(talks["train"]))
    panel.save(out / "panel.json")
    report = {
        "chitchat": dict(counts),
        "chatterbot": dict(entry_counts),
        "redactions": dict(redactions),
        "conversations": dict(Counter(sides)),
        "people": {split: len({person for c in talks[split] for person in c.people}) for split in SPLITS},
        "questions": {split: dict(Counter(e.lang for e in questions[split])) for split in SPLITS},
        "duplicates": duplicates,
        "written": written,
        "panel": {
            "constants": constants_hash(),
            "rating_correlation": rating_correlation(panel, _rated(talks["train"])),
        },
    }
    _write_json(out / "report.json", report)
    return report


def _write_records(
    out: Path, talks: dict[str, list[Conversation]], questions: dict[str, list[QuestionAnswers]], config: CollectConfig
) -> tuple[dict[str, int], dict[str, int]]:
    """Write all JSONL files. Returns the records written and the duplicates dropped, per file."""
    written: dict[str, int] = {}
    duplicates: dict[str, int] = {}

    def write(name: str, records: Sequence[T], key: Callable[[T], str]) -> None:
        kept = list(distinct(records, key))
        duplicates[name] = len(records) - len(kept)
        written[name] = write_jsonl(out / f"{name}.jsonl", (record.to_record() for record in kept))  # type: ignore[attr-defined]

    for split in SPLITS:
        if split != "test":  # no stage reads test text as a corpus: the alignment tax is measured on valid
            write(f"corpus.{split}", _documents(talks[split], questions[split]), lambda d: d.plain_text())
        write(
            f"demonstrations.{split}",
            _demonstrations(talks[split], questions[split]),
            lambda d: prompts.key(d.messages),
        )
        write(f"prompts.{split}", _prompts(talks[split], split, config), lambda p: prompts.key(p.prompt))
    return written, duplicates


def _documents(talks: list[Conversation], questions: list[QuestionAnswers]) -> list[Document]:
    answered = [document for entry in questions for document in corpus.from_questions(entry)]
    return [corpus.from_conversation(c) for c in talks] + answered


def _demonstrations(talks: list[Conversation], questions: list[QuestionAnswers]) -> list[Demonstration]:
    whole = [demonstrations.from_conversation(c) for c in talks]
    return [d for d in whole if d is not None] + [d for e in questions for d in demonstrations.from_questions(e)]


def _prompts(talks: list[Conversation], split: str, config: CollectConfig) -> list[Prompt]:
    """All prompts of valid and test, and `train_prompts` of train."""
    pool = [p for c in talks for p in prompts.from_conversation(c, split)]
    if split != "train":
        return pool
    return prompts.choose(pool, config.train_prompts, config.prompts_per_conversation, "train")


def _exchanges(talks: Iterable[Conversation]) -> Iterator[tuple[str, str]]:
    """Pairs of a user turn and the assistant turn that follows."""
    for conversation in talks:
        for turn, answer in pairwise(conversation.messages):
            if turn["role"] == "user":
                yield turn["content"], answer["content"]


def _rated(talks: Iterable[Conversation]) -> Iterator[tuple[list[dict[str, str]], dict[str, float]]]:
    return ((c.messages, c.ratings) for c in talks if c.ratings)


def _redacted_conversation(conversation: Conversation, counts: Counter[str]) -> Conversation:
    messages = []
    for message in conversation.messages:
        content, found = redact(message["content"])
        if found:
            message = {**message, "content": content}
            counts += found
        messages.append(message)
    return replace(conversation, messages=messages)


def _redacted_entry(entry: QuestionAnswers, counts: Counter[str]) -> QuestionAnswers:
    texts = []
    for text in (entry.question, *entry.answers):
        redacted, found = redact(text)
        counts += found
        texts.append(redacted)
    return replace(entry, question=texts[0], answers=tuple(texts[1:]))


def _check_splits(talks: dict[str, list[Conversation]]) -> None:
    for split in SPLITS:
        if not talks[split]:
            raise InputError(
                f"collect: no conversation is left for the {split} split, because the speakers are too few or too "
                "connected; raise --limit"
            )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
