"""A server's data folder or database URL in place of a stage's file: exported once, into a file that the run keeps.

    kto --feedback tutelage-data --out runs/kto   ->   runs/kto/inputs/feedback-SOURCE-CONTENT.jsonl

The stage reads and hashes the file, and knows nothing of databases. A run that is resumed, or repeated after its end,
uses the file that it keeps, not what people have said since. A run that was refused leaves no file.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from tutelage.errors import InputError
from tutelage.store.database import without_password
from tutelage.store.existing import FILE, is_url
from tutelage.store.feedback_command import as_lines, read_server, write_private
from tutelage.store.private import FOLDER
from tutelage.store.training_data import Kind


class KeptExports:
    """The exports of one run, in its folder for inputs."""

    def __init__(self, folder: Path, held: Callable[[], tuple[str | None, str | None]], *, overwrite: bool):
        """held: the fingerprints of a finished and of a resumable run in the run directory, as it is when called.

        overwrite: replace a finished run.
        """
        self.folder, self.held = folder, held
        self.before = finished, resumable = held()
        self.reuse = resumable is not None or (finished is not None and not overwrite)
        self.written: list[Path] = []
        self.used: list[Path] = []

    def file_for(self, option: str, source: str, kind: Kind) -> Path:
        """The kept export of this source, made now if the run has none to go on with."""
        begin = f"{option}-{_short_hash(kind, _identity(source))}-"
        kept = sorted(self.folder.glob(f"{begin}*.jsonl"), key=lambda path: path.stat().st_mtime)
        path = kept[-1] if kept and self.reuse else self._export(option, source, kind, begin)
        if path not in self.written:
            made = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M")
            print(f"--{option} {without_password(source)}: using {path}, exported on {made} UTC", file=sys.stderr)
        self.used.append(path)
        return path

    def _export(self, option: str, source: str, kind: Kind, begin: str) -> Path:
        shown = f"--{option} {without_password(source)}"
        if not is_url(source) and not (Path(source) / FILE).is_file():
            move = "give a JSONL file, the data folder of tutelage serve, or the URL of its database"
            raise InputError(f"{shown}: a folder without {FILE}; {move}")
        found = read_server(source, kind)
        if not found.records:
            raise InputError(f"{shown}: nothing to train on: {found.summary}; collect more on the chat page")
        lines = list(as_lines(found.records))
        path = self.folder / f"{begin}{_short_hash(*lines)}.jsonl"
        if not path.exists():
            self.written.append(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(FOLDER)
        write_private(path, lines)
        print(f"{shown}: {found.summary}; kept in {path}", file=sys.stderr)
        return path

    def undo(self) -> None:
        """After a failure: remove what was written, unless the run has begun with it and can be resumed."""
        now = self.held()
        if now == self.before or now[1] is None:
            for path in self.written:
                path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: these hold more
                self.folder.rmdir()
                self.folder.parent.rmdir()

    def tidy(self) -> None:
        """After the run: remove exports that it did not use, such as one left by a killed attempt."""
        for path in self.folder.glob("*.jsonl"):
            if path not in self.used:
                path.unlink()


@contextmanager
def kept_exports(
    given: Mapping[str, Sequence[str]], kinds: Mapping[str, Kind], exports: KeptExports
) -> Iterator[dict[str, tuple[Path, ...]]]:
    """Yield the files of each option. A data folder or database URL is replaced by an export.

    given: what was typed for each option. kinds: what each option takes.
    """
    try:
        yield {
            option: tuple(
                exports.file_for(option, text, kinds[option]) if is_server(text) else Path(text) for text in texts
            )
            for option, texts in given.items()
        }
    except BaseException:
        exports.undo()
        raise
    exports.tidy()


def is_server(text: str) -> bool:
    """Whether a text names a folder or a URL, and not a file."""
    return is_url(text) or os.path.isdir(text)


def _identity(source: str) -> str:
    return without_password(source) if is_url(source) else str(Path(source).resolve())


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
