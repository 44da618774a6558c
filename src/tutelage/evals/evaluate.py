"""Compare models on the same held-out prompts.

    base, SFT, reward model, policies -> one response per prompt and model -> a table of figures, and sample responses

First every model responds (`bench.py`); then the reward, the SFT model and the base model score all responses
(`judging.py`). The gold score is the simulated panel's utility without noise (`data/panel.py`). Win rates are against
SFT, a tie counts one half, and their confidence intervals are bootstrapped by conversation.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from tutelage.atomic import atomic_write
from tutelage.data.panel import constants_hash
from tutelage.errors import InputError
from tutelage.evals.bench import Bench, EvaluateConfig, ModelOutput, open_bench, run_model
from tutelage.evals.judging import SCORERS, figures
from tutelage.evals.preference import win_rate
from tutelage.rewards.open import foreign_models, places_read, reward_inputs
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
    """Compare models on held-out prompts: base, SFT, best-of-n, and the given policies, named after their folders.

    policies: Runs to compare, each named after its folder.
    base: The pretrained run.
    sft: The SFT run, from which KL is measured.
    reward: The reward: a run, FILE.py:FUNCTION, module:FUNCTION or a scorer's URL. Several are an ensemble.
    panel: Panel file (panel.json), for the gold score.
    prompts: JSONL files with held-out prompts.
    heldout: JSONL files with held-out documents, for bits per byte.
    out: Run directory to write.

    Example: tutelage evaluate runs/ppo runs/ppo-ptx --base runs/base --sft runs/sft --reward runs/reward
    --panel data/panel.json --prompts data/prompts.test.jsonl --heldout data/corpus.valid.jsonl --out runs/evaluate
    """
    folders = {"base": base, "sft": sft} | {path.name: path for path in policies}
    if len(folders) != 2 + len(policies):
        raise InputError(
            "evaluate: two models have the same folder name, which is their name in the table; rename one "
            "(base and sft are taken)"
        )
    folders = {name: find_base(path) for name, path in folders.items()}
    base, sft, *policies = folders.values()  # type: ignore[assignment]
    inputs: Inputs = {
        "policies": policies,
        "base": base,
        "sft": sft,
        "reward": reward_inputs(reward),
        "panel": panel,
        "prompts": prompts,
        "heldout": heldout,
    }
    with Run(out, stage="evaluate", config=config, inputs=inputs) as run:
        if run.finished:
            return
        for folder in folders.values():
            same_tokenizer(sft, folder)
        bench = open_bench(config, run.device, base, sft, reward, panel, prompts, heldout)
        foreign = foreign_models(bench.reward)
        if foreign:
            run.progress.say(f"{out}: {foreign}")
        report = compare(bench, measure_all(run, bench, folders))
        with atomic_write(out / "evaluation.json") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
        results = {name: row["gold_win_rate"] for name, row in report["models"].items()}
        run.finish(results | (places_read(bench.reward) if foreign else {}), ending(report, policies or [sft]))


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
    """Every model's responses, then every scorer's scores. Resumes after the last model or scorer that finished."""
    state = run.restore() or {"said": {}, "judged": {}}
    outputs, scores = {name: ModelOutput.restored(one) for name, one in state["said"].items()}, state["judged"]
    most, total = max(bench.config.best_of, default=0), len(folders) + len(SCORERS)

    def to_save() -> dict[str, Any]:
        return {"said": {name: output.state() for name, output in outputs.items()}, "judged": scores}

    for i, (name, folder) in enumerate(folders.items()):
        if name not in outputs:
            run.progress.update(i / total, model=name)
            outputs[name] = run_model(bench, bench.load(folder), most if name == "sft" else 0)
            run.checkpoint(i + 1, to_save)
    for i, (name, score) in enumerate(SCORERS.items(), len(folders)):
        if name not in scores:
            run.progress.update(i / total, scorer=name)
            scores[name] = score(bench, outputs, scores)
            run.checkpoint(i + 1, to_save)
    run.progress.update(1.0)
    return figures(bench, outputs, scores)


def compare(bench: Bench, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What evaluation.json holds: every model's figures, its win rate against SFT, and sample responses."""
    clusters = bench.clusters
    models = {}
    for name, figures_and_texts in measured.items():
        row = {key: value for key, value in figures_and_texts.items() if key not in ("texts", "golds")}
        if name == "sft":
            row |= {"gold_win_rate": 0.5, "gold_win_rate_ci": None, "kl": 0.0}
        else:
            pairs = zip(figures_and_texts["golds"], measured["sft"]["golds"], strict=True)
            rate, interval = win_rate([preference(a, b) for a, b in pairs], clusters, bench.config.seed)
            row |= {"gold_win_rate": rate, "gold_win_rate_ci": list(interval)}
        models[name] = row
    samples = [
        {"prompt": p.prompt, "answers": {name: row["texts"][i] for name, row in measured.items()}}
        for i, p in enumerate(bench.prompts[: bench.config.samples])
    ]
    return {"models": models, "samples": samples, "prompts": len(bench.prompts), "panel": constants_hash()}


def preference(ours: float, theirs: float) -> float:
    """1 if ours is better, 0 if it is worse, .5 if they are equal up to rounding."""
    return 0.5 if abs(ours - theirs) < 1e-9 else float(ours > theirs)
