"""kill -9 while people's data are written: what was acknowledged must be there at the next start.

    python benchmarks/kill_rounds.py [--rounds 200]

A real `tutelage serve` with a tiny model on SQLite, four clients that store one completion after the other; the process
is killed at a random moment, started again, and asked for all it keeps. Prints a Markdown row.
"""

import argparse
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path += [str(TESTS / "server"), str(TESTS / "stages")]
from live import kill_rounds  # noqa: E402
from world import World  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "world").make()
        place = Path(folder) / "server"
        place.mkdir()
        acknowledged, lost = kill_rounds(place, [f"chat={world.sft}"], options.rounds)
    print("| kill -9 rounds | acknowledged writes | lost |\n|---|---|---|")
    print(f"| {options.rounds} | {acknowledged} | {lost} |")


if __name__ == "__main__":
    main()
