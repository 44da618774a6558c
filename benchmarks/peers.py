"""Environments of their own for the libraries we are measured against: their versions need not agree with ours."""

import subprocess
import sys
from pathlib import Path


def environment(name: str, packages: list[str]) -> str:
    """A Python that has these packages, made once in .peers/NAME."""
    folder = Path(".peers") / name
    if not (folder / "made").is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "made").touch()
    return str(folder / "bin/python")
