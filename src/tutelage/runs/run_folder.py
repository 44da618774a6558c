"""The folder that a run works in: locked, and left as it was found if the run is refused before its first step.

    claim -> the run that it replaces is set aside -> begin, with the first step: the replaced run is gone
                                                   -> abandon, before it: the replaced run is back, or nothing is left

One process at a time owns the folder. What it sets aside lies in checkpoints/replaced, where the next process finds it
if this one is killed.
"""

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import IO

from tutelage.atomic import atomic_write
from tutelage.errors import InputError

LOCK_PATIENCE = 15.0  # seconds; a stage whose demo was killed ends when it next prints progress
OURS = ("lock", "fingerprint", "replaced")  # names in checkpoints/


class RunFolder:
    """One run's folder, before and while the run works in it."""

    def __init__(self, out: Path):
        self.out, self.checkpoints = out, out / "checkpoints"
        self.marker = self.checkpoints / "fingerprint"  # of the run that the checkpoints belong to
        self.aside = self.checkpoints / "replaced"
        self.lock: IO[str] | None = None
        self.begun = False
        self.made: list[Path] = []  # folders that were not there before, the innermost first
        self.found: set[Path] = set()  # what was there before
        self.previous: str | None = None  # the mark that was there before, of a run without a checkpoint
        if self.aside.is_dir():  # left by a process that was killed before its first step
            self._lock()
            self._put_back()
            self._release()

    @property
    def marked(self) -> str | None:
        """The fingerprint of the run that the checkpoints belong to."""
        return self.marker.read_text(encoding="utf-8") if self.marker.is_file() else None

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint."""
        return self.marked is not None and any(p.is_dir() and p.name not in OURS for p in self.checkpoints.iterdir())

    @property
    def foreign(self) -> bool:
        """Whether the folder holds something, but nothing that a run left there."""
        if self.marked is not None or not self.out.exists():
            return False
        if not self.out.is_dir():
            return True
        # Only a lock: a process was killed between taking it and writing its mark.
        return any(path != self.checkpoints / "lock" for path in self.out.rglob("*") if not path.is_dir())

    def claim(self, fingerprint: str, replacing: bool) -> None:
        """Lock the folder for this run, setting another run that it replaces aside."""
        if replacing and (nested := sorted(self.out.glob("*/run.json"))):
            inside = nested[0].parent
            raise InputError(f"{self.out}: other runs are in it ({inside}), which would be lost; choose another --out")
        parents = [self.checkpoints, self.out, *self.out.parents]
        self.made = [folder for folder in parents if not folder.exists()]
        self._lock()
        if replacing:
            self._set_aside()
        self.begun = not replacing and self.resumable and self.marked == fingerprint
        self.found, self.previous = set(self.out.iterdir()), self.marked
        self._mark(fingerprint)

    def begin(self) -> None:
        """From here on the folder is this run's: what it replaces is deleted."""
        if not self.begun:
            self.begun = True
            shutil.rmtree(self.aside, ignore_errors=True)

    def close(self, failed: bool) -> None:
        """Release the folder; after a failure before the first step, leave it as it was found."""
        if self.lock is None:
            return
        if failed and not self.begun:
            self._put_back()
        self._release()
        for folder in self.made if failed and not self.begun else ():
            with contextlib.suppress(OSError):  # somebody else may have put a file there
                folder.rmdir()

    def _lock(self) -> None:
        """Take the lock, which the system releases when the process ends, however it ends."""
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.checkpoints / "lock", "w")  # noqa: SIM115 - open for the life of the run
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current():
                    return
            self.lock.close()
            if time.monotonic() > deadline:
                problem = "another process is working on this run; wait until it ends, or stop it"
                raise InputError(f"{self.out}: {problem}")
            time.sleep(0.2)

    def _is_current(self) -> bool:
        """Whether the locked file is the one in the folder: the process that had it may have deleted the folder."""
        assert self.lock is not None
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.lock.fileno()), os.stat(self.checkpoints / "lock"))
        return False

    def _release(self) -> None:
        """Close the lock, and delete it with its folder if they are all that is there."""
        assert self.lock is not None
        if not self.begun and not self.marker.exists():
            (self.checkpoints / "lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.checkpoints.rmdir()
        self.lock.close()
        self.lock = None

    def _set_aside(self) -> None:
        """Move everything but the lock into checkpoints/replaced."""
        (self.aside / "checkpoints").mkdir(parents=True)
        for path in [p for p in self.checkpoints.iterdir() if p.name not in ("lock", "replaced")]:
            path.rename(self.aside / "checkpoints" / path.name)
        for path in [p for p in self.out.iterdir() if p != self.checkpoints]:
            path.rename(self.aside / path.name)

    def _put_back(self) -> None:
        """Remove what this run has made, and undo `_set_aside`. Killed halfway, it can be done again.

        Without a mark, `_set_aside` was killed halfway, so what lies outside belongs to the replaced run, too.
        """
        if self.marker.is_file():
            for path in set(self.out.iterdir()) - self.found - {self.checkpoints}:
                remove(path)
            self.marker.unlink()
        if self.previous is not None:
            self._mark(self.previous)
        if self.aside.is_dir():
            for path in (self.aside / "checkpoints").iterdir():
                path.rename(self.checkpoints / path.name)
            for path in [p for p in self.aside.iterdir() if p.name != "checkpoints"]:
                path.rename(self.out / path.name)
            shutil.rmtree(self.aside)

    def _mark(self, fingerprint: str) -> None:
        with atomic_write(self.marker) as file:
            file.write(fingerprint)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
