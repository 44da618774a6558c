"""Atomic file writes: a file is complete or absent.

A file is written under a temporary name in the same folder, synced to disk and renamed, and then the folder is synced.
Thus kill -9, a full disk or a power cut never leaves a partial file under the final name.
Any package may import this module.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: Path, mode: str = "w", *, private: bool = False) -> Iterator[IO]:
    """Open a temporary file. It replaces `path` when the block succeeds and is deleted when the block raises.

    private: only the owner may read the file, whatever the umask.
    """
    with atomic_path(path) as temporary, open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
        if private:
            os.fchmod(file.fileno(), 0o600)
        yield file


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Like `atomic_write`, but yield only the temporary path, for libraries that open the file themselves."""
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
    """Sync a folder's directory entries to disk. A rename is durable only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Sync a file's content to disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
