"""Files that are either whole or absent.

A file is written under a temporary name in the same folder, forced to the disk, and renamed; the folder is forced
too, so that neither kill -9 nor a full disk nor a power cut leaves half a file under the real name.
Any room may import this file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file that becomes `path` when the block ends well, and vanishes when it does not."""
    with atomic_path(path) as temporary, open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path, for libraries that open their file themselves; it becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names to the disk (a rename is only safe after this)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
