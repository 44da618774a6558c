"""Atomic writes: a file is complete or absent, even if the disk fills up during the write."""

import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tutelage.atomic import atomic_write


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
