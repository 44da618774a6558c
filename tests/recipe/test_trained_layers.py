"""benchmarks/trained_layers.py on a toy demo: one row for each number of layers, and nothing is measured twice."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("chitchat_dataset", "chatterbot_corpus", "networkx")),
    reason="the packages of the extra [demo] are not installed",
)
PROGRAM = Path(__file__).parents[2] / "benchmarks" / "trained_layers.py"
# Rank 2 times the rows and columns of q, k, v, out, gate, up and down in a block of the toy model.
BLOCK = 2 * ((32 + 32) + (32 + 16) + (32 + 16) + (32 + 32) + 3 * (32 + 64))


@pytest.mark.slow
def test_a_row_for_each_number_of_layers(demo: tuple[Path, str], tmp_path: Path) -> None:
    words = [
        sys.executable,
        str(PROGRAM),
        str(demo[0]),
        "--preset",
        "toy",
        "--layers",
        "1",
        "0",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "trained_layers.md").read_text()
    found = re.findall(r"^\| (.*?) \| ([\d,]+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", table, re.MULTILINE)
    assert [row[:3] for row in found] == [("the top 1", f"{BLOCK:,}", "1"), ("all layers", f"{2 * BLOCK:,}", "0")]
    assert all(0.05 < float(memory) < 4 and float(seconds) < 60 for *_, memory, seconds in found)
    records = [(tmp_path / f"ppo-{n}/run.json").read_bytes() for n in (1, 0)]
    assert subprocess.run(words, capture_output=True).returncode == 0
    assert records == [(tmp_path / f"ppo-{n}/run.json").read_bytes() for n in (1, 0)]
    again = (tmp_path / "trained_layers.md").read_text()
    assert again.partition("\n\n")[2] == table.partition("\n\n")[2] != ""  # the line above it tells of this sitting
