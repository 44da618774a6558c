"""`tutelage feedback`: what people said on the chat page, as records to train on.

data folder or database URL, kind  ->  JSONL in a private file or on standard output, and a summary
"""

import json
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from tutelage.atomic import atomic_write
from tutelage.options import Advanced
from tutelage.store.existing import open_existing
from tutelage.store.training_data import Kind, TrainingData, training_data


@dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    """The server whose feedback this is."""

    data: str = "tutelage-data"
    """The server's data folder (`tutelage serve --data`), or the URL of its database."""
    database: Advanced[str] = ""
    """URL of the server's database. Empty: the SQLite file in --data."""


def feedback(
    action: Positional[Literal["export"]],
    kind: Literal["kto", "comparisons", "demonstrations", "flags", "prompts"],
    out: Path | None = None,
    config: FeedbackConfig = FeedbackConfig(),
) -> None:
    """Export what people said on the chat page and allowed to be trained on. Personal data are redacted.

    action: What to do.
    kind: What to export. kto: thumbs; comparisons: choices between two answers, and better answers above those that
      they replace; demonstrations: better answers; flags: texts for the moderation classifier; prompts: questions.
    out: JSONL file to write, which only you can read. Without it the records go to standard output.

    Example: tutelage feedback export --data tutelage-data --kind kto --out thumbs.jsonl
    """
    found = read_server(config.data, kind, config.database)
    if out is None:
        sys.stdout.writelines(as_lines(found.records))
        print(f"{kind}: {found.summary}", file=sys.stderr)
        return
    write_private(out, as_lines(found.records))
    print(f"{out}: {found.summary}")


def read_server(data: str, kind: Kind, url: str = "") -> TrainingData:
    """What a server's people said. data: its data folder or a database URL. Raises InputError if there is none."""
    with closing(open_existing(data, url)) as database, database.snapshot() as session:
        return training_data(session, kind)


def as_lines(records: Iterable[dict[str, Any]]) -> Iterable[str]:
    return (json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_private(path: Path, lines: Iterable[str]) -> None:
    """Write a file that only its owner can read. It is complete or absent."""
    with atomic_write(path, private=True) as file:
        file.writelines(lines)
