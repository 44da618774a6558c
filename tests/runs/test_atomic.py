"""Atomic writes: a file is complete or absent, even if the disk fills up during the write."""

import errno
import fcntl
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tutelage.atomic import atomic_folder, atomic_write, sweep


@contextmanager
def files_end_after(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail part-way, as on a full disk (with EFBIG rather than ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_file_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_write(path) as file:
        file.write("第一行\n")
        file.flush()
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "第一行\n"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), atomic_write(path, "wb") as file:
            file.write(b"new")
            raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(OSError) as caught, files_end_after(1000), atomic_write(path, "wb") as file:
        file.write(b"x" * 5000)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_what_killed_processes_have_left_is_swept(tmp_path: Path) -> None:
    """And nothing else: names of others, names for another file, what a process is still writing."""
    dead, path = gone(), tmp_path / "file.txt"
    (tmp_path / f".file.txt.{dead}.tmp").write_text("half")
    (tmp_path / f".file.txt.{2**40}.tmp").mkdir()  # no process has such an id
    with subprocess.Popen(["sleep", "60"]) as other:
        kept = [
            f".file.txt.{other.pid}.tmp",
            f".file.{dead}.tmp",
            f"file.txt.{dead}.tmp",
            ".file.txt.tmp",
            ".file.txt.x.tmp",
        ]
        for name in kept:
            (tmp_path / name).touch()
        (tmp_path / f".file.txt.{dead}.tmp.tmp").symlink_to("/etc/hostname")
        with atomic_write(path) as file:
            file.write("whole")
        other.kill()
    assert sorted(os.listdir(tmp_path)) == sorted(["file.txt", f".file.txt.{dead}.tmp.tmp", *kept])
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["file.txt", f".file.txt.{dead}.tmp.tmp", f"file.txt.{dead}.tmp", ".file.txt.tmp", ".file.txt.x.tmp"]
    )


def test_what_a_process_of_another_container_writes_is_kept(tmp_path: Path) -> None:
    """Its id may be unknown here, but it holds a lock on the file."""
    name = f".file.txt.{gone()}.tmp"
    with (tmp_path / name).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        sweep(tmp_path)
        assert os.listdir(tmp_path) == [name]
    sweep(tmp_path)
    assert os.listdir(tmp_path) == []


def test_its_own_file_is_locked_while_it_writes(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file.txt") as file, open(file.name) as again, pytest.raises(BlockingIOError):
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "step"
    with atomic_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_folder(path, replace=True) as folder:
        (folder / "file").write_text("two")
        raise RuntimeError
    assert (path / "inner" / "file").read_text() == "one" and os.listdir(tmp_path) == ["step"]
    with pytest.raises(OSError, match="not empty"), atomic_folder(path) as folder:
        (folder / "file").write_text("two")
    assert (path / "inner" / "file").read_text() == "one" and os.listdir(tmp_path) == ["step"]
    with atomic_folder(path, replace=True) as folder:
        (folder / "file").write_text("two")
    assert os.listdir(path) == ["file"] and os.listdir(tmp_path) == ["step"]


def test_a_place_without_a_name_is_a_folder() -> None:
    with pytest.raises(IsADirectoryError), atomic_write(Path("/")):
        pass


def test_two_threads_may_write_different_files(tmp_path: Path) -> None:
    def write(name: str) -> None:
        with atomic_write(tmp_path / name) as file:
            file.write(name * 1000)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "d"]
    assert (tmp_path / "c").read_text() == "c" * 1000
