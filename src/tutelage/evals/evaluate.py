"""Compare models on the same prompts, and models and rewards on the same rankings.

    --prompts: one response per prompt and model -> reward, gold score, KL, win rates   ┐
                                                                                        ├> a table, evaluation.json
    --comparisons: scores of the ranked responses -> how often the order is right       ┘

First every model responds (`bench.py`); then the reward, the SFT model and the base model score all responses
(`judging.py`). The gold score is the simulated panel's utility without noise (`data/panel.py`); without a panel the
reward decides who wins. Win rates are against SFT, a tie counts one half, and their confidence intervals are
bootstrapped by conversation. `rankings.py` judges the rankings.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from tutelage.atomic import atomic_write
from tutelage.data.panel import constants_hash
from tutelage.data.rankings import held_out, strict_pairs
from tutelage.data.records import read_comparisons
from tutelage.errors import InputError
from tutelage.evals.bench import Bench, EvaluateConfig, ModelOutput, open_bench, run_model
from tutelage.evals.contest import SFT, Contest, check, enter
from tutelage.evals.judging import figures, scorers_of
from tutelage.evals.preference import win_rate
from tutelage.evals.rankings import policy_row, reward_row
from tutelage.evals.table import lines_of
from tutelage.json_file import read_object
from tutelage.rewards.open import foreign_models, kind_of, load_frozen, open_reward, places_read, reward_inputs
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, Figure, command
from tutelage.runs.folder import same_tokenizer
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run


def evaluate(
    policies: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    prompts: tuple[Path, ...] = (),
    comparisons: tuple[Path, ...] = (),
    sft: Path | None = None,
    base: Path | None = None,
    reward: tuple[str, ...] = (),
    panel: Path | None = None,
    heldout: tuple[Path, ...] = (),
    config: EvaluateConfig = EvaluateConfig(),
) -> None:
    """Compare any runs: language models by their responses to prompts, and all models by how they order rankings.

    policies: Runs to compare, each named after its folder. With --comparisons they may be reward models.
    out: Run directory to write.
    prompts: JSONL files with held-out prompts, to which the language models respond.
    comparisons: JSONL files with rankings, to measure how often each model orders a pair as the annotators did.
    sft: The SFT run, from which KL is measured and against which models win or lose. By default the first run.
    base: The pretrained run, to be compared as well.
    reward: The reward: a run, FILE.py:FUNCTION, module:FUNCTION or a scorer's URL. Several are an ensemble. A function
    is def f(conversations) -> list[float]: each conversation is a list of {"role", "content"} messages that ends with
    the response, and gets one number.
    panel: Panel file (panel.json), for the gold score. Without it the reward decides which response wins.
    heldout: JSONL files with held-out documents, for bits per byte.

    Example: tutelage evaluate runs/ppo --sft runs/sft --reward runs/reward --prompts data/prompts.test.jsonl
    --comparisons data/ranks.jsonl --out runs/evaluate
    """
    fixed = {name: find_base(path) for name, path in (("base", base), (SFT, sft)) if path}
    contest = enter(policies, fixed)
    check(contest, bool(prompts), bool(comparisons))
    inputs: Inputs = {
        "policies": [*(contest.policies | contest.scorers).values()],
        "base": fixed.get("base"),
        "sft": fixed.get(SFT),
        "reward": reward_inputs(reward) if reward else None,
        "panel": panel,
        "prompts": prompts,
        "comparisons": comparisons,
        "heldout": heldout,
    }
    with Run(out, stage="evaluate", config=config, inputs=inputs) as run:
        if run.finished:
            show_again(run)
            return
        report: dict[str, Any] = {"models": {}, "samples": [], "prompts": 0, "panel": None}
        read_at: dict[str, list[str]] = {}
        if prompts:
            folders, reference = contest.responding, contest.reference
            for folder in folders.values():
                same_tokenizer(folders[reference], folder)
            bench = open_bench(
                config, run.device, fixed.get("base"), folders[reference], reward, panel, prompts, heldout
            )
            if bench.reward and (foreign := foreign_models(bench.reward)):
                run.progress.say(f"{out}: {foreign}")
                read_at = places_read(bench.reward)
            report = compare(bench, measure_all(run, bench, folders, reference), reference)
        if comparisons:
            report["rankings"] = judge_rankings(run, contest, comparisons, reward, config)
        with atomic_write(out / "evaluation.json") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
        run.finish(results_of(report) | read_at, ending(report, contest))


def results_of(report: dict[str, Any]) -> dict[str, Any]:
    """What run.json says: each model's win rate, and the accuracy of everything that orders rankings."""
    rates = {name: row.get("reward_win_rate", row["gold_win_rate"]) for name, row in report["models"].items()}
    return rates | {f"{name}: accuracy": row["accuracy"] for name, row in report.get("rankings", {}).items()}


def ending(report: dict[str, Any], contest: Contest) -> Ending:
    """The table, and how often each model is preferred to the reference."""
    models, rankings, reference = report["models"], report.get("rankings", {}), contest.reference
    made = [f"compared {len(models)} models on {report['prompts']:,} prompts"] if models else []
    made += [f"compared {len(rankings)} models on rankings"] if rankings else []
    return Ending(
        f"{' and '.join(made)}; evaluation.json has all figures",
        [
            rate
            for name, row in models.items()
            for kind in ("gold", "reward")
            for rate in rates(name, row, kind, reference)
        ],
        next=[command("chat", policy) for policy in contest.policies.values()],
        table=lines_of(report),
    )


def rates(name: str, row: dict[str, Any], kind: str, reference: str) -> list[Figure]:
    """How often a model is preferred to the reference by the gold score or the reward; nothing if not measured."""
    if not (interval := row.get(f"{kind}_win_rate_ci")):
        return []
    low, high = interval
    note = f"95% confidence interval {low:.1%} to {high:.1%}"
    note += "; no clear difference" if low <= 0.5 <= high else ""
    by = "" if kind == "gold" else " by the reward"
    return [Figure(f"{name} preferred to {reference}{by}", row[f"{kind}_win_rate"], note=note, format=".1%")]


def show_again(run: Run) -> None:
    """The table of an evaluation that had already finished."""
    report = read_object(run.out / "evaluation.json", "give --overwrite to make the evaluation again")
    run.progress.end(lines_of(report))


def measure_all(run: Run, bench: Bench, folders: dict[str, Path], reference: str) -> dict[str, dict[str, Any]]:
    """Every model's responses, then every scorer's scores. Resumes after the last model or scorer that finished."""
    state = run.restore() or {"said": {}, "judged": {}}
    outputs, scores = {name: ModelOutput.restored(one) for name, one in state["said"].items()}, state["judged"]
    scorers = scorers_of(bench)
    most, total = max(bench.config.best_of, default=0) if bench.reward else 0, len(folders) + len(scorers)

    def to_save() -> dict[str, Any]:
        return {"said": {name: output.state() for name, output in outputs.items()}, "judged": scores}

    for i, (name, folder) in enumerate(folders.items()):
        if name not in outputs:
            run.progress.update(i / total, model=name)
            outputs[name] = run_model(bench, bench.load(folder), most if name == reference else 0)
            run.checkpoint(i + 1, to_save)
    for i, (name, score) in enumerate(scorers.items(), len(folders)):
        if name not in scores:
            run.progress.update(i / total, scorer=name)
            scores[name] = score(bench, outputs, scores)
            run.checkpoint(i + 1, to_save)
    run.progress.update(1.0)
    return figures(bench, outputs, scores)


def compare(bench: Bench, measured: dict[str, dict[str, Any]], reference: str) -> dict[str, Any]:
    """What evaluation.json holds: every model's figures, its win rate against the reference, and sample responses."""
    models = {}
    for name, figures_and_texts in measured.items():
        row = {key: value for key, value in figures_and_texts.items() if key not in ("texts", "golds", "rewards")}
        row |= {"kl": 0.0} if name == reference else {}
        row |= win_rates(bench, figures_and_texts, measured[reference], "gold", name == reference)
        if bench.panel is None:
            row |= win_rates(bench, figures_and_texts, measured[reference], "reward", name == reference)
        models[name] = row
    samples = [
        {"prompt": p.prompt, "answers": {name: row["texts"][i] for name, row in measured.items()}}
        for i, p in enumerate(bench.prompts[: bench.config.samples])
    ]
    panel = constants_hash() if bench.panel else None
    return {"models": models, "samples": samples, "prompts": len(bench.prompts), "panel": panel}


def win_rates(bench: Bench, ours: dict[str, Any], theirs: dict[str, Any], kind: str, same: bool) -> dict[str, Any]:
    """How often one model's responses have the higher gold score or reward; None if they have none."""
    names = f"{kind}_win_rate", f"{kind}_win_rate_ci"
    if ours[f"{kind}s"] is None:
        return dict.fromkeys(names)
    if same:
        return dict(zip(names, (0.5, None), strict=True))
    preferences = [preference(a, b) for a, b in zip(ours[f"{kind}s"], theirs[f"{kind}s"], strict=True)]
    rate, interval = win_rate(preferences, bench.clusters, bench.config.seed)
    return dict(zip(names, (rate, list(interval)), strict=True))


def judge_rankings(
    run: Run, contest: Contest, files: Sequence[Path], rewards: Sequence[str], config: EvaluateConfig
) -> dict[str, dict[str, Any]]:
    """How often each run and each reward orders a pair of the rankings as the annotators did."""
    strict = [c for c in read_comparisons(files) if strict_pairs(c.ranks) and held_out(c, config.comparisons_share)]
    if not strict:
        raise InputError("evaluate: no ranking has a strict order; give others, or raise --comparisons-share")

    def judged(name: str) -> dict[str, Any]:
        return reward_row(
            open_reward([name], config, lambda place: load_frozen(place, run.device)), strict, config.seed
        )

    reference = contest.fixed.get(SFT)
    rows = {
        name: policy_row(folder, reference, strict, run.device, config.seed)
        for name, folder in contest.policies.items()
    }
    rows |= {name: judged(str(folder)) for name, folder in contest.scorers.items()}
    known = {str(folder) for folder in contest.scorers.values()}
    for name in rewards:
        short = Path(name).name if kind_of(name) == "run" else name
        rows |= {} if name in known else {name if short in rows else short: judged(name)}
    return rows


def preference(ours: float, theirs: float) -> float:
    """1 if ours is better, 0 if it is worse, .5 if they are equal up to rounding."""
    return 0.5 if abs(ours - theirs) < 1e-9 else float(ours > theirs)
