"""How well the simulated annotators agree, and what accuracy gold reaches on their pairs.

    python benchmarks/calibrate_panel.py --data runs/demo/data                       candidates made from human answers
    python benchmarks/calibrate_panel.py --data runs/demo/data --samples FILE.jsonl  lines of {"prompt", "responses"}

Prints, and leaves in OUT (record.py), for each noise scale: agreement (share of the pairs that two annotators both rank
strictly which they rank alike), ties, and the ceiling (gold accuracy on the strict pairs of the annotators).
The scale nearest to 73 % is to be frozen as `NOISE` in src/tutelage/data/panel.py.
"""

import argparse
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from record import Record, add_out

from tutelage.data import panel as panel_module
from tutelage.data.panel import ANNOTATORS, WEIGHTS, Panel
from tutelage.data.records import Messages, messages_field, read_demonstrations, read_jsonl

COLUMNS = ("agreement", "ties", "ceiling")
Sets = list[tuple[Messages, list[str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"), help="what `tutelage collect` wrote")
    parser.add_argument("--samples", type=Path, help='JSONL of {"prompt", "responses"}; without: human answers')
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--noise", type=float, nargs="+", default=[panel_module.NOISE])
    add_out(parser)
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.exit(
            2, f"{arguments.data}: not there; run `make demo` first, or `tutelage collect --out {arguments.data}`\n"
        )
    record = Record(arguments.out / "calibrate_panel", arguments)
    panel = Panel.load(arguments.data / "panel.json")
    sets = sampled_sets(arguments.samples) if arguments.samples else human_sets(arguments.data, arguments.sets)
    say_variance(record, panel, sets)
    record.say(f"{len(sets)} prompts\n\n| noise | {' | '.join(COLUMNS)} |\n|---|---|---|---|")
    figures = {}
    for noise in arguments.noise:
        panel_module.NOISE = noise
        figures[noise] = dict(zip(COLUMNS, measure(panel, sets), strict=True))
        record.say(f"| {noise} | {' | '.join(f'{figure:.3f}' for figure in figures[noise].values())} |")
    record.leave(figures)


def sampled_sets(path: Path) -> Sets:
    return [(messages_field(r, "prompt", f"{path}, line {n}"), r["responses"]) for n, r in read_jsonl(path)]


def human_sets(data: Path, n: int) -> Sets:
    """One true answer and three of other prompts, some cut short or repeating themselves as a small model would.

    From the valid split: the panel has counted the true answers of the training split.
    """
    rng = random.Random(0)
    exchanges = [
        (d.messages[max(0, i - 5) : i], d.messages[i]["content"])
        for d in read_demonstrations([data / "demonstrations.valid.jsonl"])
        if d.conversation
        for i in range(1, len(d.messages), 2)
    ]
    chosen = rng.sample(exchanges, n)
    return [(turn, [true, *(spoilt(rng.choice(exchanges)[1], rng) for _ in range(3))]) for turn, true in chosen]


def spoilt(answer: str, rng: random.Random) -> str:
    words = answer.split()
    at = rng.randrange(len(words))
    fate = rng.random()
    if fate < 0.6:
        return answer
    loop = 2 * words[max(0, at - 2) : at + 1] + words[at + 1 :]
    return " ".join(words[: at + 1] + ([] if fate < 0.8 else loop))


def measure(panel: Panel, sets: Sets) -> tuple[float, float, float]:
    """Agreement, ties, ceiling."""
    alike, tied, right = [], [], []
    for prompt, answers in sets:
        gold = [panel.utility(prompt, answer) for answer in answers]
        ranks = [panel.annotate(annotator, prompt, answers, seed=0) for annotator in ANNOTATORS]
        for i, j in combinations(range(len(answers)), 2):
            signs = [(r[i] < r[j]) - (r[i] > r[j]) for r in ranks]
            tied += [sign == 0 for sign in signs]
            right += [(sign > 0) == (gold[i] > gold[j]) for sign in signs if sign]
            alike += [a == b for a, b in combinations(signs, 2) if a and b]
    return mean(alike), mean(tied), mean(right)


def say_variance(record: Record, panel: Panel, sets: Sets) -> None:
    """Each feature's share of the variance of utility over the first answers of the sets."""
    rows = [panel.features(prompt, answers[0]) for prompt, answers in sets]
    parts = {name: np.array([row[name] * WEIGHTS[name] for row in rows]) for name in WEIGHTS}
    utility = np.sum(list(parts.values()), axis=0)
    shares = ", ".join(f"{name} {np.cov(part, utility)[0, 1] / utility.var():.0%}" for name, part in parts.items())
    spread = f"mean {utility.mean():.2f}, standard deviation {utility.std():.2f}"
    record.say(f"utility of first answers: {spread}; variance from {shares}")


def mean(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


if __name__ == "__main__":
    main()
