"""One toy demo for the tests that look at a finished one. Read only."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # where its programs find each other


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One whole run and what it printed."""
    from test_demo import run_demo

    out = tmp_path_factory.mktemp("demo") / "toy"
    return out, run_demo(out)
