"""Plot reward against KL for each algorithm: the over-optimisation figure of Gao et al. 2022.

    python benchmarks/reward_kl.py runs/demo [runs/demo-seed1 ...] [--out runs/reward_kl]
    python benchmarks/reward_kl.py runs/demo --algorithms ppo --iterations 100 --kl-coef 0 --kl-budget 50 --out runs/far
    python benchmarks/reward_kl.py runs/demo-smollm2 --algorithms ppo-ptx --lora-layers 0 --out runs/all_layers
    python benchmarks/reward_kl.py runs/demo-smollm2 --algorithms ppo-ptx --lora-layers 4 --reward-layers 4 --out runs/4

Starts from the SFT and reward model of finished demos (`tutelage demo`, with or without --base). Trains PPO-ptx, PPO,
PPO with four epochs on each rollout, RLOO, GRPO and DPO with the demo's own budgets (`recipe/preset.py`) and keeps
snapshots. Best-of-n samples from the SFT model. All respond to the same held-out prompts. Each point has the proxy
reward, the gold score of the simulated panel with its 95 % confidence interval, the KL to the SFT model, and the bits
per byte of held-out text (the alignment tax, and what ptx recovers).

The script can be interrupted and repeated: training continues from its checkpoints, and points in points.jsonl are not
measured again. Writes OUT/<demo>/points.jsonl (a line as soon as its point is measured), OUT/reward_kl.png, and
OUT/reward_kl.md and .json (record.py).
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from record import Record

from tutelage.atomic import atomic_write
from tutelage.cli import TORCH_SETTINGS
from tutelage.data.panel import Panel
from tutelage.data.records import read_comparisons
from tutelage.errors import InputError
from tutelage.evals.bench import Bench, EvaluateConfig, open_bench, sample
from tutelage.evals.best_of_n import best_of_n
from tutelage.evals.evaluate import preference
from tutelage.evals.judging import measure, reward_scores
from tutelage.evals.preference import mean_with_interval, win_rate
from tutelage.learning.kl import best_of_n_kl_bound
from tutelage.recipe.conductor import Conductor, read_record
from tutelage.recipe.demo import Start, steps
from tutelage.recipe.preset import BASED, PRESETS, Preset
from tutelage.recipe.step import Step
from tutelage.rlhf.config import RLConfig
from tutelage.runs.adapter import AdapterConfig
from tutelage.runs.device import choose_device
from tutelage.runs.identity import fingerprint, hash_inputs
from tutelage.stages.dpo import DPOConfig
from tutelage.stages.grpo import GRPOConfig
from tutelage.stages.ppo import PPOConfig
from tutelage.stages.rloo import RLOOConfig

BEST_OF = (1, 2, 4, 8, 16)
COLOURS = {
    "ppo-ptx": "#0b6e4f", "ppo": "#c1292e", "ppo-4-epochs": "#e8998d", "rloo": "#2e5eaa", "grpo": "#8e5cb5",
    "dpo": "#d98c21", "best-of-n": "#444444",
}  # fmt: skip
HEAD = "| demo | algorithm | after | KL to SFT, nats | proxy reward | gold | beats SFT in | bits per byte | ends |"
Line = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """One finished demo, and the settings of what is trained and measured from it."""

    demo: Path
    out: Path
    preset: Preset
    seed: int
    points: int  # policies per algorithm
    beyond: dict[str, Any]  # settings of PPO, RLOO and GRPO that differ from the demo's
    algorithms: tuple[str, ...]
    reward_layers: int | None = None  # train a reward model with adapters in so many layers; None: use the demo's

    @property
    def recipe(self) -> dict[str, Step]:
        """The demo's stages, with their files."""
        base = self.demo / "imported"
        start = Start(base=base) if base.is_dir() else Start()
        return {step.name: step for step in steps(self.demo, self.preset, self.seed, start)}

    @property
    def reward(self) -> Path:
        return self.recipe["reward"].out if self.reward_layers is None else self.out / "reward"

    def own_reward(self) -> list[Step]:
        """The training of a new reward model from the demo's files; empty if the demo's reward model is used."""
        if self.reward_layers is None:
            return []
        step = self.recipe["reward"]
        config = replace(step.config, lora_layers=self.reward_layers)  # type: ignore[type-var]
        return [replace(step, out=self.reward, record=self.reward, config=config)]

    def plan(self) -> list[Step]:
        """The chosen trainings: PPO as in the demo, the others on the same files and with PPO's values."""
        ppo, ptx = (self.without_judge(name) for name in ("ppo", "ppo-ptx"))
        shared = {option.name: getattr(self.preset.ppo, option.name) for option in fields(RLConfig)}
        grpo = GRPOConfig(**shared | {"kl_coef": GRPOConfig.kl_coef}, minibatch=self.preset.ppo.minibatch)
        comparisons = self.recipe["reward"].inputs["comparisons"]
        known = [
            self.trained("ppo-ptx", "ppo", ptx, self.preset.ppo),
            self.trained("ppo", "ppo", ppo, replace(self.preset.ppo, ptx=False)),
            self.trained("ppo-4-epochs", "ppo", ppo, self.four_epochs()),
            self.trained("rloo", "rloo", ppo, RLOOConfig(**shared)),
            self.trained("grpo", "grpo", ppo, grpo),
            self.trained("dpo", "dpo", {"policy": ppo["policy"], "comparisons": comparisons}, self.dpo_config()),
        ]
        return [step for step in known if step.name in self.algorithms]

    def without_judge(self, name: str) -> dict[str, Any]:
        """The files of one of the demo's stages, without the judge, which would stop a run that over-optimises."""
        files = {key: given for key, given in self.recipe[name].inputs.items() if key != "judge"}
        return files | {"reward": self.reward}

    def trained(self, name: str, verb: str, inputs: dict[str, Any], config: Any) -> Step:
        """One training. Its snapshots are evenly spaced; the last policy is the run itself."""
        if isinstance(config, RLConfig):
            config = replace(config, **self.beyond)
            length = config.iterations
        else:
            prompts = len(read_comparisons(inputs["comparisons"])) * (1 - config.heldout)
            length = math.ceil(prompts / config.batch) * config.epochs
        config = replace(config, seed=self.seed, overwrite=True, snapshot_every=math.ceil(length / self.points))
        return Step(name, verb, inputs, self.out / name, self.out / name, config)

    def four_epochs(self) -> PPOConfig:
        """PPO with four epochs per rollout at a quarter of the learning rate: as far per rollout, in smaller steps."""
        one = self.preset.ppo
        return replace(one, ptx=False, epochs=4, value_epochs=0, lr=one.lr / 4, value_lr=one.value_lr / 4)

    def dpo_config(self) -> DPOConfig:
        """DPO's settings. Its default learning rate is for small models.

        Adapters use the reward model's learning rate, which suits the same pairs.
        """
        shared = {option.name: getattr(self.preset.ppo, option.name) for option in fields(AdapterConfig)}
        lr = self.preset.reward.lr if self.preset.ppo.adapted else DPOConfig.lr
        return DPOConfig(**shared, lr=lr)


def train(experiment: Experiment) -> None:
    """Train each algorithm in a separate process, as the demo runs its stages."""
    plan, seconds = [*experiment.own_reward(), *experiment.plan()], experiment.preset.seconds
    record = read_record(experiment.out) or {"seed": experiment.seed, "stages": {}}
    expected = {step.name: seconds.get(step.name, seconds["ppo"]) for step in plan}
    Conductor(experiment.out, record, plan, expected).run_all()


def policies(experiment: Experiment) -> Iterator[tuple[str, str, Path]]:
    """(algorithm, step, folder): the SFT model first, then for each run its snapshots and its final policy."""
    yield "sft", "start", experiment.demo / "sft"
    for step in experiment.plan():
        for snapshot in sorted((step.out / "snapshots").glob("[0-9]*")):
            yield step.name, str(int(snapshot.name)), snapshot
        yield step.name, "end", step.out


class Points:
    """points.jsonl. Every line is flushed to disk when written; a line that was cut off is measured again."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        whole, _, cut = (path.read_text(encoding="utf-8") if path.is_file() else "").rpartition("\n")
        if cut:
            with atomic_write(path) as file:
                file.write(f"{whole}\n" if whole else "")
        self.measured = {line["made_from"]: line for line in map(json.loads, whole.splitlines())}
        self.chosen: list[Line] = []  # the points of the current settings, in order

    def known(self, made_from: str) -> bool:
        self.chosen += [self.measured[made_from]] if made_from in self.measured else []
        return made_from in self.measured

    def add(self, line: Line) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.chosen.append(line)


class Judge:
    """The prompts and measures for every policy. Best-of-n's candidates are sampled once for all n."""

    def __init__(self, bench: Bench):
        self.bench = bench

    def policy(self, folder: Path, sft_golds: Sequence[float] | None) -> Line:
        """The figures of a run. Without `sft_golds` the run is the SFT model itself."""
        row = measure(self.bench, folder)
        figures = {name: value for name, value in row.items() if name not in ("texts", "golds")}
        pairs = zip(row["golds"], sft_golds or row["golds"], strict=True)
        return figures | self.figures(row["golds"], [preference(a, b) for a, b in pairs])

    def best_of(self, n: int, sft_golds: Sequence[float]) -> Line:
        """The figures of the response with the highest score among n, averaged over all choices of n candidates."""
        golds, wins, proxy = [], [], []
        for scores, gold, own in zip(*self.candidates, sft_golds, strict=True):
            proxy.append(best_of_n(scores, scores, n))
            golds.append(best_of_n(scores, gold, n))
            wins.append(best_of_n(scores, [preference(g, own) for g in gold], n))
        figures = {"reward": sum(proxy) / len(proxy), "kl": best_of_n_kl_bound(n), "kl_is_bound": True}
        return figures | self.figures(golds, wins)

    @cached_property
    def candidates(self) -> tuple[list[list[float]], list[list[float]]]:
        """[prompt][response]: proxy reward and gold score of max(BEST_OF) responses to each prompt."""
        bench = self.bench
        responses = sample(bench, bench.load(bench.sft), max(BEST_OF))
        texts = [[bench.tokenizer.decode(response.ids) for response in group] for group in responses]
        golds = [
            [bench.panel.utility(p.prompt, t) for t in group] for p, group in zip(bench.prompts, texts, strict=True)
        ]
        return reward_scores(bench, responses).tolist(), golds

    def figures(self, golds: list[float], wins: list[float]) -> Line:
        """Gold score and win rate against SFT with their confidence intervals, and each prompt's gold score."""
        bench = self.bench
        gold, interval = mean_with_interval(golds, bench.clusters, bench.config.seed)
        rate, between = win_rate(wins, bench.clusters, bench.config.seed)
        return {"gold": gold, "gold_ci": interval, "win_rate": rate, "win_rate_ci": between, "golds": golds}


def score(experiment: Experiment, config: EvaluateConfig) -> list[Line]:
    """Measure every trained policy and best-of-n, in the order of the table."""
    files: dict[str, Any] = dict(experiment.recipe["evaluate"].inputs) | {"reward": experiment.reward}
    del files["policies"]
    hashes, points = hash_inputs(files), Points(experiment.out / "points.jsonl")
    device, judge = choose_device(config.device, config.dtype), None
    chosen = [("best-of-n", str(n), files["sft"]) for n in BEST_OF if "best-of-n" in experiment.algorithms]
    for algorithm, step, folder in [*policies(experiment), *chosen]:
        made_from = fingerprint(f"{algorithm} {step}", config, hashes | hash_inputs({"policy": folder}))
        if points.known(made_from):
            continue
        judge = judge or Judge(open_bench(config, device, **files | {"reward": [str(files["reward"])]}))
        print(f"{experiment.out.name}: {algorithm} {step}", flush=True)
        golds = points.chosen[0]["golds"] if points.chosen else None
        found = judge.best_of(int(step), golds) if algorithm == "best-of-n" else judge.policy(folder, golds)
        points.add({"algorithm": algorithm, "step": step, "made_from": made_from} | found)
    return points.chosen


# ---- table and figure


def table(lines: dict[str, list[Line]]) -> str:
    """All points of all demos as a Markdown table."""
    rows = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    for demo, points in lines.items():
        for p in points:
            low, high = p["gold_ci"]
            rate, (least, most) = p["win_rate"], p["win_rate_ci"]
            tail = [
                f"{'≤ ' if p['kl_is_bound'] else ''}{round(p['kl'], 2) + 0.0:.2f}", f"{p['reward']:.3f}",
                f"{p['gold']:.3f} [{low:.3f}, {high:.3f}]", f"{rate:.1%} [{least:.1%}, {most:.1%}]",
                f"{p['bits_per_byte']:.3f}" if "bits_per_byte" in p else "–",
                f"{p['end_of_turn_rate']:.1%}" if "end_of_turn_rate" in p else "–",
            ]  # fmt: skip
            rows.append("| " + " | ".join([demo, p["algorithm"], p["step"], *tail]) + " |")
    return "\n".join(rows) + "\n"


def draw(lines: dict[str, list[Line]], path: Path) -> None:
    """Draw proxy reward and gold score over the square root of the KL, as in the paper; bits per byte over the KL."""
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = ("proxy reward", "gold: the simulated panel", "bits per byte of held-out text")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="√ KL to SFT, √ nats (best-of-n: the bound)")
        axes.grid(alpha=0.3)
    panels[2].set_xlabel("KL to SFT, nats")
    for points in lines.values():
        known = {p["algorithm"] for p in points}
        for name, colour in ((name, colour) for name, colour in COLOURS.items() if name in known):
            start = "" if name == "best-of-n" else "sft"  # the best of 1 is the SFT model
            draw_line(panels, [p for p in points if p["algorithm"] in (start, name)], name, colour)
    named = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(COLOURS))
    figure.savefig(path, dpi=110)


def draw_line(panels: Any, line: list[Line], name: str, colour: str) -> None:
    """Draw one algorithm of one demo, starting at the SFT model."""
    style: Any = dict(
        color=colour, marker="o", markersize=4, linewidth=1.5, linestyle="--" if name == "best-of-n" else "-"
    )
    root = [math.sqrt(max(0.0, p["kl"])) for p in line]  # an estimate of a KL near 0 may be negative
    panels[0].plot(root, [p["reward"] for p in line], label=name, **style)
    error = [[p["gold"] - p["gold_ci"][0] for p in line], [p["gold_ci"][1] - p["gold"] for p in line]]
    panels[1].errorbar(root, [p["gold"] for p in line], error, elinewidth=0.6, alpha=0.85, **style)
    known = [p for p in line if "bits_per_byte" in p]
    if name != "best-of-n":
        panels[2].plot([p["kl"] for p in known], [p["bits_per_byte"] for p in known], **style)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "demos", type=Path, nargs="*", default=[Path("runs/demo")], help="folders that `tutelage demo` wrote"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/reward_kl"), help="folder to write")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo", help="preset of the demos")
    parser.add_argument("--points", type=int, help="policies to measure per algorithm; default: 4, with a base 3")
    parser.add_argument("--count", type=int, help="held-out prompts; default: 200, with a base 100")
    parser.add_argument("--kl-budget", type=float, help="KL in nats at which training stops; default: the demo's")
    parser.add_argument("--kl-coef", type=float, help="KL coefficient of PPO, RLOO and GRPO; default: the demo's")
    parser.add_argument("--iterations", type=int, help="iterations of PPO, RLOO and GRPO; default: the demo's")
    parser.add_argument(
        "--lora-layers", type=int, help="top layers with the policies' adapters, 0 for all; default: the demo's"
    )
    parser.add_argument(
        "--reward-layers",
        type=int,
        help="train a reward model with adapters in so many top layers, 0 for all; default: use the demo's",
    )
    parser.add_argument("--algorithms", nargs="+", choices=COLOURS, default=list(COLOURS), help="default: all")
    given = parser.parse_args()
    if missing := [demo for demo in given.demos if not (demo / "reward/run.json").is_file()]:
        parser.exit(2, f"{missing[0]}: no finished demo here; run `make demo` first, or name another folder\n")
    if len({demo.name for demo in given.demos}) < len(given.demos):
        parser.exit(2, "demos: two have the same folder name, which the table needs to tell them apart; rename one\n")
    if not TORCH_SETTINGS.keys() <= os.environ.keys():  # torch's libraries read them at import
        os.execve(sys.executable, [sys.executable, *sys.argv], TORCH_SETTINGS | dict(os.environ))
    record = Record(given.out / "reward_kl", given)
    lines: dict[str, list[Line]] = {}
    try:
        for demo in given.demos:
            lines[demo.name] = run(demo, given)
    except InputError as error:
        parser.exit(2, f"{error}\n")
    draw(lines, given.out / "reward_kl.png")
    record.say(table(lines))
    kept = {demo: [{k: v for k, v in p.items() if k != "golds"} for p in points] for demo, points in lines.items()}
    record.leave(kept)  # each prompt's gold score is in points.jsonl


def run(demo: Path, given: argparse.Namespace) -> list[Line]:
    """One demo: train, then score."""
    based = (demo / "imported").is_dir()
    preset, seed = (BASED if based else PRESETS)[given.preset], (read_record(demo) or {"seed": 0})["seed"]
    points, count = given.points or (3 if based else 4), given.count or (100 if based else 200)
    settings = {name: getattr(given, name) for name in ("kl_budget", "kl_coef", "iterations", "lora_layers")}
    beyond = {name: value for name, value in settings.items() if value is not None}
    experiment = Experiment(
        demo, given.out / demo.name, preset, seed, points, beyond, tuple(given.algorithms), given.reward_layers
    )
    Panel.load(demo / "data/panel.json")  # fails before minutes of training if its version differs
    train(experiment)
    return score(experiment, replace(preset.evaluate, count=count, seed=seed))


if __name__ == "__main__":
    main()
