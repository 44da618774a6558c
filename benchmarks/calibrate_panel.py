"""Measure how often the simulated annotators agree, and the gold score's accuracy on their pairs.

    python benchmarks/calibrate_panel.py --data runs/demo/data                       candidates made from human answers
    python benchmarks/calibrate_panel.py --data runs/demo/data --samples FILE.jsonl  lines of {"prompt", "responses"}

For each noise scale the script prints three figures and writes them to OUT (record.py):
    agreement   of the pairs that two annotators both rank strictly, the share that they rank the same way
    ties        the share of pairs that an annotator ranks equal
    ceiling     the gold score's accuracy on the annotators' strict pairs
Set `NOISE` in src/tutelage/data/panel.py to the scale whose agreement is nearest to 73 %.
"""

import argparse
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from record import Record, add_out

from tutelage.data import panel as panel_module
from tutelage.data.jsonl import read_jsonl
from tutelage.data.messages import Messages, messages_field
from tutelage.data.panel import ANNOTATORS, WEIGHTS, Panel
from tutelage.data.records import read_demonstrations

COLUMNS = ("agreement", "ties", "ceiling")
Sets = list[tuple[Messages, list[str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"), help="what `tutelage collect` wrote")
    parser.add_argument("--samples", type=Path, help='JSONL of {"prompt", "responses"}; default: human answers')
    parser.add_argument("--sets", type=int, default=400, help="prompts with human answers; unused with --samples")
    parser.add_argument("--noise", type=float, nargs="+", default=[panel_module.NOISE], help="noise scales to measure")
    add_out(parser)
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        parser.exit(
            2,
            f"{arguments.data}: no such folder; run `make demo` first, or `tutelage collect --out {arguments.data}`\n",
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
    """`n` prompts, each with its true answer and three answers to other prompts.

    Some of the three are cut short or repeat themselves, as a small model would. The prompts come from the validation
    split, because the panel's word counts include the true answers of the training split.
    """
    rng = random.Random(0)
    exchanges = [
        (d.messages[max(0, i - 5) : i], d.messages[i]["content"])
        for d in read_demonstrations([data / "demonstrations.valid.jsonl"])
        if d.conversation
        for i in range(1, len(d.messages), 2)
    ]
    chosen = rng.sample(exchanges, n)
    return [(turn, [true, *(corrupted(rng.choice(exchanges)[1], rng) for _ in range(3))]) for turn, true in chosen]


def corrupted(answer: str, rng: random.Random) -> str:
    """The answer: 60 % unchanged, 20 % cut short, 20 % with a repeated phrase."""
    words = answer.split()
    at = rng.randrange(len(words))
    fate = rng.random()
    if fate < 0.6:
        return answer
    loop = 2 * words[max(0, at - 2) : at + 1] + words[at + 1 :]
    return " ".join(words[: at + 1] + ([] if fate < 0.8 else loop))


def measure(panel: Panel, sets: Sets) -> tuple[float, float, float]:
    """Agreement, ties and ceiling, each a share from 0 to 1 (NaN if there is nothing to count)."""
    alike, tied, right = [], [], []
    for prompt, responses in sets:
        gold = [panel.utility(prompt, response) for response in responses]
        ranks = [panel.annotate(annotator, prompt, responses, seed=0) for annotator in ANNOTATORS]
        for i, j in combinations(range(len(responses)), 2):
            signs = [(r[i] < r[j]) - (r[i] > r[j]) for r in ranks]
            tied += [sign == 0 for sign in signs]
            right += [(sign > 0) == (gold[i] > gold[j]) for sign in signs if sign]
            alike += [a == b for a, b in combinations(signs, 2) if a and b]
    return mean(alike), mean(tied), mean(right)


def say_variance(record: Record, panel: Panel, sets: Sets) -> None:
    """Print each feature's share of the variance of the gold score over the first responses of the sets."""
    rows = [panel.features(prompt, responses[0]) for prompt, responses in sets]
    parts = {name: np.array([row[name] * WEIGHTS[name] for row in rows]) for name in WEIGHTS}
    utility = np.sum(list(parts.values()), axis=0)
    shares = ", ".join(f"{name} {np.cov(part, utility)[0, 1] / utility.var():.0%}" for name, part in parts.items())
    spread = f"mean {utility.mean():.2f}, standard deviation {utility.std():.2f}"
    record.say(f"gold score of the first responses: {spread}; variance from {shares}")


def mean(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


if __name__ == "__main__":
    main()
