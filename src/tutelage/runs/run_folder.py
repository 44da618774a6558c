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

from tutelage.atomic import atomic_write, is_left_over, sweep
from tutelage.errors import InputError
from tutelage.runs.checkpoint import steps_in
from tutelage.runs.record import RECORD, is_damaged_record, read_run

LOCK_PATIENCE = 15.0  # seconds; a stage whose demo was killed ends when it next prints progress
KEPT_INPUTS = "inputs"  # inputs that were exported for this run, before it claims the folder


class RunFolder:
    """One run's folder, before and while the run works in it."""

    def __init__(self, out: Path):
        self.out, self.checkpoints = out, out / "checkpoints"
        self.marker = self.checkpoints / "fingerprint"  # of the run that the checkpoints belong to
        self.aside = self.checkpoints / "replaced"
        self.returned, self.discarded = self.checkpoints / "returned", self.checkpoints / "discarded"
        self.lock: IO[str] | None = None
        self.claimed = self.begun = False
        self.made: list[Path] = []  # folders that were not there before, the innermost first
        self.found: set[Path] = set()  # what was there before
        self.previous: str | None = None  # the mark that was there before, of a run without a checkpoint
        if self.aside.is_dir() or self.returned.is_dir():  # left by a process that was killed before its first step
            self._lock()
            self._put_back()
            self._release()

    @property
    def marked(self) -> str | None:
        """The fingerprint of the run that the checkpoints belong to."""
        return self.marker.read_text(encoding="utf-8", errors="replace") if self.marker.is_file() else None

    @property
    def resumable(self) -> bool:
        """Whether there is a checkpoint."""
        return self.marked is not None and bool(steps_in(self.checkpoints))

    @property
    def foreign(self) -> str | None:
        """Why no run can start here, in words; None if the folder holds nothing, or only what a run left there."""
        if self.marked is not None or not self.out.exists():
            return None
        if not self.out.is_dir():
            return "is a file, not a folder; choose another --out"
        if all(self._is_remnant(path) for path in self.out.rglob("*")):
            return None
        if is_damaged_record(self.out / RECORD):
            move = "restore it, delete the folder, or choose another --out"
            return f"its {RECORD} is damaged, so it is not known which run this is; {move}"
        return "the folder is not empty and holds no run; choose another --out"

    def _is_remnant(self, path: Path) -> bool:
        """Whether a run that was killed before its first mark may have left this: a lock, or a half-written file."""
        if path.is_dir() or path == self.checkpoints / "lock" or path.is_relative_to(self.out / KEPT_INPUTS):
            return True
        return is_left_over(path) or (path == self.out / RECORD and is_damaged_record(path))

    def wait(self) -> None:
        """Wait until no other process works in the folder. Raises InputError after LOCK_PATIENCE."""
        parents = [self.checkpoints, self.out, *self.out.parents]
        self.made = [folder for folder in parents if not folder.exists()]
        self._lock()

    def claim(self, fingerprint: str, replacing: bool) -> None:
        """Make the locked folder this run's, setting another run that it replaces aside."""
        if replacing and (nested := sorted(self.out.glob("*/run.json"))):
            inside = nested[0].parent
            raise InputError(f"{self.out}: other runs are in it ({inside}), which would be lost; choose another --out")
        self._sweep()
        self.claimed = True
        if replacing:
            self._set_aside()
        self.begun = not replacing and self.resumable and self.marked == fingerprint
        self.found, self.previous = set(self.out.iterdir()), self.marked
        self._mark(fingerprint)

    def begin(self) -> None:
        """From here on the folder is this run's: what it replaces is deleted."""
        if not self.begun:
            self.begun = True
            if self.aside.is_dir():
                self.aside.rename(self.discarded)  # at once, so that a kill leaves no half of the replaced run
                shutil.rmtree(self.discarded, ignore_errors=True)

    def close(self, failed: bool) -> None:
        """Release the folder; after a failure before the first step, leave it as it was found."""
        if self.lock is None:
            return
        if failed and self.claimed and not self.begun:
            self._put_back()
        self._release()
        for folder in self.made if failed and not self.begun else ():
            with contextlib.suppress(OSError):  # somebody else may have put a file there
                folder.rmdir()

    def tidy(self) -> None:
        """Delete the checkpoints of a finished run whose process was killed before it could, unless it still runs."""
        with contextlib.suppress(OSError), open(self.checkpoints / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _sweep(self) -> None:
        """Delete what killed processes have left: temporary files, and a replaced run."""
        shutil.rmtree(self.discarded, ignore_errors=True)
        for folder, _, _ in os.walk(self.out):
            sweep(Path(folder))

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
        """Move everything but the lock and the exported inputs into checkpoints/replaced.

        The mark goes first: with a mark, what lies outside belongs to the run that replaces.
        """
        (self.aside / "checkpoints").mkdir(parents=True)
        inside = [path for path in self.checkpoints.iterdir() if path.name not in ("lock", self.aside.name)]
        for path in sorted(inside, key=lambda path: path != self.marker):
            path.rename(self.aside / "checkpoints" / path.name)
        for path in [p for p in self.out.iterdir() if p not in (self.checkpoints, self.out / KEPT_INPUTS)]:
            path.rename(self.aside / path.name)

    def _put_back(self) -> None:
        """Remove what this run has made, and undo `_set_aside`. Killed halfway, it can be done again.

        Without a mark, `_set_aside` or this was killed halfway, so what lies outside belongs to the replaced run, too.
        Its mark comes back last, out of a folder that is no longer called `replaced`.
        """
        if self.marker.is_file() and not self.returned.is_dir():
            for path in set(self.out.iterdir()) - self.found - {self.checkpoints, self.out / KEPT_INPUTS}:
                remove(path)
            self.marker.unlink()
        if self.previous is not None:
            self._mark(self.previous)
        if self.aside.is_dir():
            mark, inner = self.aside / "checkpoints" / self.marker.name, self.aside / "checkpoints"
            for path in [p for p in inner.iterdir() if p != mark] if inner.is_dir() else ():
                path.rename(self.checkpoints / path.name)
            for path in [p for p in self.aside.iterdir() if p != inner]:
                path.rename(self.out / path.name)
            self.aside.rename(self.returned)
        if self.returned.is_dir():
            with contextlib.suppress(FileNotFoundError):
                (self.returned / "checkpoints" / self.marker.name).rename(self.marker)
            shutil.rmtree(self.returned)

    def _mark(self, fingerprint: str) -> None:
        with atomic_write(self.marker) as file:
            file.write(fingerprint)


def held_in(out: Path) -> tuple[str | None, str | None]:
    """The fingerprints of the finished run in a folder, and of the run that its checkpoints resume; None without."""
    record, marker = read_run(out), out / "checkpoints" / "fingerprint"
    resumable = marker.is_file() and steps_in(marker.parent)
    return (record["fingerprint"] if record else None), (marker.read_text("utf-8", "replace") if resumable else None)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
