"""One finished toy demo, for tests that only read it."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # its programs import each other


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished run, and its printed output."""
    from test_demo import run_demo

    out = tmp_path_factory.mktemp("demo") / "toy"
    return out, run_demo(out)
