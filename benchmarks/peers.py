"""Environments of their own for the libraries we are measured against: their versions need not agree with ours."""

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def environment(name: str, packages: list[str]) -> str:
    """A Python that has these packages, made once in .peers/NAME."""
    folder = Path(".peers") / name
    if not (folder / "made").is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "made").touch()
    return str(folder / "bin/python")


def apart(prepare: Callable[..., None], *given: Any) -> None:
    """Run it in a process of its own: Linux counts the memory of whoever starts a process as that one's peak."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(prepare, *given).result()
