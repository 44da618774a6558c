"""Models side by side on the same held-out prompts.

    base, SFT, reward model, policies -> one answer per prompt and model -> the table, and samples to read

First every model answers (`bench.py`), then reward, SFT and base judge what all have said (`judging.py`). Gold is the
simulated panel's utility, without noise (`data/panel.py`): win rates against SFT, ties one half, bootstrapped by
conversation.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from tutelage.atomic import atomic_write
from tutelage.data.panel import constants_hash
from tutelage.errors import InputError
from tutelage.evals.bench import Bench, EvaluateConfig, Said, ask, lay_out
from tutelage.evals.judging import JUDGES, figures
from tutelage.evals.preference import win_rate
from tutelage.rewards.open import reward_inputs
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, Figure, command
from tutelage.runs.folder import same_tokenizer
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run


def evaluate(
    policies: tyro.conf.Positional[tuple[Path, ...]],
    base: Path,
    sft: Path,
    reward: tuple[str, ...],
    panel: Path,
    prompts: tuple[Path, ...],
    heldout: tuple[Path, ...],
    out: Path,
    config: EvaluateConfig = EvaluateConfig(),
) -> None:
    """Compare models on held-out prompts: base, SFT, best-of-n, and the policies given, by their folder's name.

    reward: a run, FILE.py:FUNCTION, module:FUNCTION, or a scorer's URL; several are an ensemble.

    Example: tutelage evaluate runs/ppo runs/ppo-ptx --base runs/base --sft runs/sft --reward runs/reward
    --panel data/panel.json --prompts data/prompts.test.jsonl --heldout data/corpus.valid.jsonl --out runs/evaluate
    """
    folders = {"base": base, "sft": sft} | {path.name: path for path in policies}
    if len(folders) != 2 + len(policies):
        raise InputError("evaluate: two of the models have the same folder name; rename one, the table goes by names")
    folders = {name: find_base(path) for name, path in folders.items()}
    base, sft, *policies = folders.values()  # type: ignore[assignment]
    inputs: Inputs = {
        "policies": policies, "base": base, "sft": sft, "reward": reward_inputs(reward), "panel": panel,
        "prompts": prompts, "heldout": heldout,
    }  # fmt: skip
    with Run(out, stage="evaluate", config=config, inputs=inputs) as run:
        if run.finished:
            return
        for folder in folders.values():
            same_tokenizer(sft, folder)
        bench = lay_out(config, run.device, base, sft, reward, panel, prompts, heldout)
        report = compare(bench, measure_all(run, bench, folders))
        with atomic_write(out / "evaluation.json") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
        results = {name: row["gold_win_rate"] for name, row in report["models"].items()}
        run.finish(results, ending(report, policies or [sft]))


def ending(report: dict[str, Any], policies: Sequence[Path]) -> Ending:
    """How often the panel prefers each model to SFT."""
    rates = []
    for name, row in report["models"].items():
        if interval := row["gold_win_rate_ci"]:
            low, high = interval
            note = f"95% confidence interval {low:.1%} to {high:.1%}"
            note += "; no clear difference" if low <= 0.5 <= high else ""
            rates.append(Figure(f"{name} preferred to sft", row["gold_win_rate"], note=note, format=".1%"))
    made = f"compared {len(report['models'])} models on {report['prompts']:,} prompts; evaluation.json has all figures"
    return Ending(made, rates, next=[command("chat", policy) for policy in policies])


def measure_all(run: Run, bench: Bench, folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Every model's answers, then every judge's findings; goes on after the last of them that was finished."""
    state = run.restore() or {"said": {}, "judged": {}}
    said, judged = {name: Said.restored(one) for name, one in state["said"].items()}, state["judged"]
    most, total = max(bench.config.best_of, default=0), len(folders) + len(JUDGES)

    def saved() -> dict[str, Any]:
        return {"said": {name: one.state() for name, one in said.items()}, "judged": judged}

    for i, (name, folder) in enumerate(folders.items()):
        if name not in said:
            run.progress.update(i / total, model=name)
            said[name] = ask(bench, bench.load(folder), most if name == "sft" else 0)
            run.checkpoint(i + 1, saved)
    for i, (name, find) in enumerate(JUDGES.items(), len(folders)):
        if name not in judged:
            run.progress.update(i / total, judge=name)
            judged[name] = find(bench, said, judged)
            run.checkpoint(i + 1, saved)
    run.progress.update(1.0)
    return figures(bench, said, judged)


def compare(bench: Bench, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The table: every model's figures, and its win rate against SFT; and the samples."""
    clusters = bench.clusters
    models = {}
    for name, row in measured.items():
        told = {k: v for k, v in row.items() if k not in ("texts", "golds")}
        if name == "sft":
            told |= {"gold_win_rate": 0.5, "gold_win_rate_ci": None, "kl": 0.0}
        else:
            pairs = zip(row["golds"], measured["sft"]["golds"], strict=True)
            rate, interval = win_rate([preference(a, b) for a, b in pairs], clusters, bench.config.seed)
            told |= {"gold_win_rate": rate, "gold_win_rate_ci": list(interval)}
        models[name] = told
    samples = [
        {"prompt": p.prompt, "answers": {name: row["texts"][i] for name, row in measured.items()}}
        for i, p in enumerate(bench.prompts[: bench.config.samples])
    ]
    return {"models": models, "samples": samples, "prompts": len(bench.prompts), "panel": constants_hash()}


def preference(mine: float, theirs: float) -> float:
    """1 where mine is better than theirs, 0 where it is worse, .5 where they are equal."""
    return 0.5 if abs(mine - theirs) < 1e-9 else float(mine > theirs)
