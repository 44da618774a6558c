"""Atomic writes: a file or a folder is complete or absent.

It is written under a temporary name next to its final one, synced to disk and renamed, and then the folder around it is
synced. Thus kill -9, a full disk or a power cut never leaves anything partial under the final name.

A temporary name holds the process id, `.NAME.PID.tmp`, and the process locks what it writes. `sweep` deletes what
processes left that are gone. Any package may import this module.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

TEMPORARY = re.compile(r"\.(.+)\.([0-9]+)\.tmp", re.DOTALL)


@contextmanager
def atomic_write(path: Path, mode: str = "w", *, private: bool = False) -> Iterator[IO]:
    """Open a temporary file. It replaces `path` when the block succeeds and is deleted when the block raises.

    private: only the owner may read the file, whatever the umask.
    """
    # A path that is no UTF-8 has surrogates; they are written as JSON escapes them.
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
    with atomic_path(path) as temporary, open(temporary, mode, encoding=encoding, errors=errors) as file:
        if private:
            os.fchmod(file.fileno(), 0o600)
        yield file


def _temporary(path: Path) -> Path:
    """The name under which this process writes; what processes that are gone have left of it is deleted."""
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Like `atomic_write`, but yield only the temporary path, for libraries that open the file themselves."""
    temporary = _temporary(path)
    try:
        temporary.touch()
        with _locked(temporary):
            yield temporary
            sync_file(temporary)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder. It becomes `path` when the block succeeds and is deleted when the block raises.

    replace: delete a folder that is there. Without this, only an empty one is replaced.
    """
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        with _locked(temporary):
            yield temporary
            for entry in (*temporary.rglob("*"), temporary):
                sync_folder(entry) if entry.is_dir() else sync_file(entry)
            if replace:
                shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def sweep(folder: Path, name: str | None = None) -> None:
    """Delete the temporary files and folders of processes that are gone: those for `name`, by default all."""
    for entry in folder.iterdir():
        match = TEMPORARY.fullmatch(entry.name)
        if match and name in (None, match[1]) and is_left_over(entry):
            with contextlib.suppress(OSError):  # another process may delete it, too
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def is_left_over(path: Path) -> bool:
    """Whether this is a temporary file or folder of a process that is gone."""
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and not path.is_symlink() and _is_gone(int(match[2])) and not _is_locked(path)


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return process > 0
    except PermissionError:  # it is another user's
        return False
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock while the block runs: a process in another container may have an id that is unknown here."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True  # not ours to delete
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)  # else a file system without locks
    finally:
        os.close(descriptor)
    return False


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
