"""Kill the server with `kill -9` while it stores completions, and check that no acknowledged write is lost.

    python benchmarks/kill_rounds.py [--rounds 200] [--out runs/benchmarks]

In each round a `tutelage serve` with a tiny model on SQLite gets completions to store from four clients. The process is
killed at a random moment, restarted, and asked for everything it stores. Prints a Markdown row and writes it to OUT
(record.py).
"""

import argparse
import sys
import tempfile
from pathlib import Path

from record import Record, add_out

TESTS = Path(__file__).parent.parent / "tests"
sys.path += [str(TESTS / "server"), str(TESTS / "stages")]
from live import kill_rounds  # noqa: E402
from world import World  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="times the server is killed")
    add_out(parser)
    options = parser.parse_args()
    record = Record(options.out / "kill_rounds", options)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "world").make()
        place = Path(folder) / "server"
        place.mkdir()
        acknowledged, lost = kill_rounds(place, [f"chat={world.sft}"], options.rounds)
    record.say("| kill -9 rounds | acknowledged writes | lost |\n|---|---|---|")
    record.say(f"| {options.rounds} | {acknowledged} | {lost} |")
    record.leave({"rounds": options.rounds, "acknowledged": acknowledged, "lost": lost})


if __name__ == "__main__":
    main()
