"""A recipe's folder -> its figures, as the report shows them and as summary.json gives them to programs.

    runs/demo/{data, tokenizer, base, ..., evaluate, demo.json} -> Recipe -> summary.json

Policies that were trained into the same folder by other means, PPO's siblings, are shown with it under their own names.
Only what is on disk counts: a stage that has not run has no figures (null), and nothing is computed again.
Needs neither torch nor matplotlib, so that a program can call `write_summary` at any time.
"""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.runs.log import read_metrics

FOLDERS = {  # stage -> its folder in the recipe's, in the order in which they run
    "data": "data",
    "tokenizer": "tokenizer",
    "pretrain": "base",
    "import": "imported",
    "sft": "sft",
    "rank": "comparisons.run",
    "reward": "reward",
    "ppo": "ppo",
    "ppo-ptx": "ppo-ptx",
    "evaluate": "evaluate",
}
STAGES = (*FOLDERS, "report")
MADE_HERE = ("tokenizer", "pretrain")  # by a recipe whose base was not taken over from elsewhere
SAMPLED = ("ppo", "rloo", "grpo")  # stages that learn from rollouts
PREFERRED = ("dpo", "kto")  # stages that learn from what people preferred
MODELS = ("base", "sft", "best-of-4", "best-of-16", "ppo", "ppo-ptx")
FIGURES = (
    "gold_win_rate", "gold_win_rate_ci", "reward", "kl", "kl_is_bound", "bits_per_byte", "length", "end_of_turn_rate",
    "distinct_1", "distinct_2", "answer_fit", "nats_under_base",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What one folder tells. Files that are not there are empty."""

    folder: Path
    runs: dict[str, dict[str, Any]]  # stage -> run.json; the siblings' by their folder's name, after all stages
    data: dict[str, Any]  # data/report.json: counts
    evaluation: dict[str, Any]  # evaluate/evaluation.json
    demo: dict[str, Any]  # demo.json: seconds and peak memory of the whole processes

    def results(self, stage: str) -> dict[str, Any]:
        return self.runs.get(stage, {}).get("results", {})

    def setting(self, stage: str, name: str) -> Any:
        """One field of a stage's config, or None."""
        return self.runs.get(stage, {}).get("config", {}).get(name)

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        return read_metrics(self.folder / FOLDERS.get(stage, stage) / "metrics.jsonl")

    def siblings(self, stages: tuple[str, ...] = (*SAMPLED, *PREFERRED)) -> tuple[str, ...]:
        """Other policies that one of these stages trained into this folder."""
        return tuple(name for name, run in self.runs.items() if name not in FOLDERS and run["stage"] in stages)

    @property
    def models(self) -> tuple[str, ...]:
        """The recipe's, then whatever else was evaluated beside them."""
        return tuple(dict.fromkeys((*MODELS, *self.evaluation.get("models", {}))))

    def cost(self, stage: str) -> dict[str, Any]:
        """Seconds and peak memory: of the process where the demo measured it, else as the run itself did."""
        run = self.runs.get(stage, {})
        own = {"seconds": run.get("wall_seconds"), "peak_memory_bytes": run.get("peak_memory_bytes")}
        measured = self.demo.get("stages", {}).get(stage, {})
        return {name: own[name] if measured.get(name) is None else measured[name] for name in own}

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of this recipe: its base was either made here or taken over."""
        others = MADE_HERE if "import" in self.runs else ("import",)
        return tuple(stage for stage in STAGES if stage not in others)

    @property
    def total_seconds(self) -> float | None:
        """Of the stages that are there, over all their sittings."""
        known = [seconds for stage in self.stages if (seconds := self.cost(stage)["seconds"]) is not None]
        return round(sum(known), 1) if known else None

    @property
    def latest(self) -> dict[str, Any]:
        """run.json of the last stage that has one."""
        own = [run for stage, run in self.runs.items() if stage in FOLDERS]
        return (own or list(self.runs.values()) or [{}])[-1]

    @property
    def seed(self) -> int | None:
        return self.demo.get("seed", self.latest.get("config", {}).get("seed"))


def read_recipe(folder: Path) -> Recipe:
    """Raises InputError for a folder that holds no run, and for a file in it that is not JSON."""
    found = {stage: read_object(folder / name / "run.json") for stage, name in FOLDERS.items()}
    runs = {stage: run for stage, run in found.items() if run} | read_siblings(folder)
    evaluation = read_object(folder / FOLDERS["evaluate"] / "evaluation.json")
    if not runs and not evaluation:
        raise InputError(
            f"{folder}: holds no finished run; point at a folder as `tutelage demo` makes it, with base, sft, ..."
        )
    data = read_object(folder / FOLDERS["data"] / "report.json")
    return Recipe(folder, runs, data, evaluation, read_object(folder / "demo.json"))


def read_siblings(folder: Path) -> dict[str, dict[str, Any]]:
    """{folder's name: run.json} of finished policies that are no stage of the recipe."""
    known = {*FOLDERS, *FOLDERS.values()}
    places = [path.parent for path in sorted(folder.glob("*/run.json")) if path.parent.name not in known]
    found = {place.name: read_object(place / "run.json") for place in places}
    return {name: run for name, run in found.items() if run.get("stage") in (*SAMPLED, *PREFERRED)}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no file. Numbers that are not finite become None."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); run its stage again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object; run its stage again")
    return content


def summarise(recipe: Recipe) -> dict[str, Any]:
    """Every figure of summary.json; None where undefined or not measured."""
    models = recipe.evaluation.get("models", {})
    reward = recipe.results("reward")
    return {
        "models": {model: {name: models.get(model, {}).get(name) for name in FIGURES} for model in recipe.models},
        "stages": {stage: recipe.cost(stage) for stage in (*recipe.stages, *recipe.siblings())},
        "reward_model": {"accuracy": reward.get("accuracy"), "ceiling": reward.get("ceiling")},
        "total_seconds": recipe.total_seconds,
        "seed": recipe.seed,
        "gemm_gflops": recipe.demo.get("gemm_gflops"),
        "package_version": recipe.latest.get("package_version", version("tutelage")),
    }


def write_summary(folder: Path) -> None:
    """Write folder/summary.json. The demo calls it again once it knows what the report itself took."""
    with atomic_write(folder / "summary.json") as file:
        json.dump(summarise(read_recipe(folder)), file, indent=2, allow_nan=False)
