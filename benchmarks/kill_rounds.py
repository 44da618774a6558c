"""kill -9 while people's data are written: what was acknowledged must be there at the next start.

    python benchmarks/kill_rounds.py [--rounds 200] [--out runs/benchmarks]

A real `tutelage serve` with a tiny model on SQLite, four clients that store one completion after the other; the process
is killed at a random moment, started again, and asked for all it keeps. Prints a Markdown row and leaves it in OUT
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
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
