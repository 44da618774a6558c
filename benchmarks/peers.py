"""Separate environments for the libraries we measure against, whose versions may conflict with ours."""

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def environment(name: str, packages: list[str]) -> str:
    """The Python interpreter of an environment with these packages. Created once, in .peers/NAME."""
    folder = Path(".peers") / name
    if not (folder / "made").is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "made").touch()
    return str(folder / "bin/python")


def apart(prepare: Callable[..., None], *given: Any) -> None:
    """Run a function in a separate process.

    Linux counts the parent's memory in the peak of a new process, so the benchmark's own process must stay small.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(prepare, *given).result()
