"""Files that only their owner can read: the database, what SQLite writes beside it, copies of it, and their folder.

The modes do not depend on the umask. SQLite gives its log the mode of the database file.
"""

import contextlib
import logging
import os
import stat
from pathlib import Path

FILE, FOLDER = 0o600, 0o700
OTHERS = 0o077
BESIDE = ("", "-wal", "-shm", "-journal", ".lock")  # endings of the names of SQLite's files
OTHER_FILES = ("pepper", "setting-up.lock")  # of a server's data folder

log = logging.getLogger(__name__)


def owner_only(path: str, flags: int) -> int:
    """An `opener` for `open`: a new file is private from the start."""
    return os.open(path, flags, FILE)


def private_database(file: Path) -> None:
    """Create a SQLite file if there is none. Make it, the files beside it and their folder private.

    A folder that also holds other files keeps its mode, as it may be anybody's; a warning says so.
    """
    private_folder(file.parent, file.name)
    with contextlib.suppress(OSError):  # SQLite reports why it cannot open the file
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, FILE))
    for path in file.parent.iterdir():
        if _is_of(path, file.name) and path.is_file():
            tighten(path, FILE)


def private_folder(folder: Path, database: str = "tutelage.db") -> None:
    """Create a server's data folder, or make an existing one private if it holds nothing else."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=FOLDER)
    elif not folder.stat().st_mode & OTHERS:
        return
    if all(path.name in OTHER_FILES or _is_of(path, database) for path in folder.iterdir()):
        tighten(folder, FOLDER)
    else:
        log.warning("%s: other users may list this folder, which also holds other files; chmod 700 ends that", folder)


def _is_of(path: Path, database: str) -> bool:
    """Whether a file is the database, one that SQLite writes beside it, or a copy made before a migration."""
    return path.name in [database + end for end in BESIDE] or path.name.startswith(f"{database}.before-")


def tighten(path: Path, mode: int) -> None:
    """Take the rights of other users away; a warning says if that is impossible."""
    now = stat.S_IMODE(path.stat().st_mode)
    if now != mode:
        try:
            path.chmod(mode)
        except OSError as error:
            log.warning("%s: other users may read it (mode %o), and that cannot be changed: %s", path, now, error)
