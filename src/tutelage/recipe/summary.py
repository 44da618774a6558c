"""Collects a recipe's figures from its folder, for the report and for summary.json.

    runs/demo/{data, tokenizer, base, ..., evaluate, demo.json} -> Recipe -> summary.json

Other policies trained into the same folder (siblings: RLOO, DPO, ...) are shown next to PPO, under their folders'
names. Figures are read from disk and never recomputed; a stage that has not run has none (null). This module needs
neither torch nor matplotlib, so that a program can call `write_summary` at any time.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.json_file import read_object
from tutelage.kinds import Kind, check_fields
from tutelage.recipe.recorded import DATA, DEMO, EVALUATION, RUN
from tutelage.runs.log import read_metrics

FOLDERS = {  # stage -> its folder inside the recipe's, in the order in which the stages run
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
MADE_HERE = ("tokenizer", "pretrain")  # stages of a recipe that pretrains its base model instead of importing one
SAMPLED = ("ppo", "rloo", "grpo")  # stages that train on rollouts
PREFERRED = ("dpo", "kto")  # stages that train on preferences directly
MODELS = ("base", "sft", "best-of-4", "best-of-16", "ppo", "ppo-ptx")
FIGURES = (
    "gold_win_rate",
    "gold_win_rate_ci",
    "reward",
    "kl",
    "kl_is_bound",
    "bits_per_byte",
    "length",
    "end_of_turn_rate",
    "distinct_1",
    "distinct_2",
    "answer_fit",
    "nats_under_base",
)


@dataclass(frozen=True)
class Recipe:
    """The contents of a recipe's folder. Missing files are empty dicts."""

    folder: Path
    runs: dict[str, dict[str, Any]]  # stage -> run.json; siblings follow the stages, by the name of their folder
    data: dict[str, Any]  # data/report.json: counts
    evaluation: dict[str, Any]  # evaluate/evaluation.json
    demo: dict[str, Any]  # demo.json: seconds and peak memory of each stage's process

    def results(self, stage: str) -> dict[str, Any]:
        return self.runs.get(stage, {}).get("results", {})

    def setting(self, stage: str, name: str) -> Any:
        """One field of a stage's config, or None."""
        return self.runs.get(stage, {}).get("config", {}).get(name)

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        return read_metrics(self.folder / FOLDERS.get(stage, stage) / "metrics.jsonl")

    def siblings(self, stages: tuple[str, ...] = (*SAMPLED, *PREFERRED)) -> tuple[str, ...]:
        """Names of the other policies in this folder that one of the given stages trained."""
        return tuple(name for name, run in self.runs.items() if name not in FOLDERS and run["stage"] in stages)

    @property
    def models(self) -> tuple[str, ...]:
        """The recipe's models, then all others in the evaluation."""
        return tuple(dict.fromkeys((*MODELS, *self.evaluation.get("models", {}))))

    def cost(self, stage: str) -> dict[str, Any]:
        """Seconds and peak memory: of the whole process if the demo measured it, otherwise as the run recorded them."""
        run = self.runs.get(stage, {})
        own = {"seconds": run.get("wall_seconds"), "peak_memory_bytes": run.get("peak_memory_bytes")}
        measured = self.demo.get("stages", {}).get(stage, {})
        return {name: own[name] if measured.get(name) is None else measured[name] for name in own}

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this recipe, whose base model was either pretrained or imported."""
        others = MADE_HERE if "import" in self.runs else ("import",)
        return tuple(stage for stage in STAGES if stage not in others)

    @property
    def total_seconds(self) -> float | None:
        """Time of all finished stages, including time before interruptions."""
        known = [seconds for stage in self.stages if (seconds := self.cost(stage)["seconds"]) is not None]
        return round(sum(known), 1) if known else None

    @property
    def latest(self) -> dict[str, Any]:
        """run.json of the last stage that has finished."""
        own = [run for stage, run in self.runs.items() if stage in FOLDERS]
        return (own or list(self.runs.values()) or [{}])[-1]

    @property
    def seed(self) -> int | None:
        return self.demo.get("seed", self.latest.get("config", {}).get("seed"))


def read_recipe(folder: Path) -> Recipe:
    """Raises InputError for a folder without a finished run, and for a file in it that is not JSON."""
    records = {stage: read_figures(folder / name / "run.json", RUN) for stage, name in FOLDERS.items()}
    runs = {stage: run for stage, run in records.items() if run} | read_siblings(folder)
    evaluation = read_figures(folder / FOLDERS["evaluate"] / "evaluation.json", EVALUATION)
    if not runs and not evaluation:
        raise InputError(
            f"{folder}: holds no finished run; pass a folder that `tutelage demo` has made, with base, sft, ... in it"
        )
    data = read_figures(folder / FOLDERS["data"] / "report.json", DATA)
    return Recipe(folder, runs, data, evaluation, read_figures(folder / "demo.json", DEMO))


def read_siblings(folder: Path) -> dict[str, dict[str, Any]]:
    """{folder name: run.json} of finished policies that are not a stage of the recipe."""
    known = {*FOLDERS, *FOLDERS.values()}
    places = [path.parent for path in sorted(folder.glob("*/run.json")) if path.parent.name not in known]
    records = {place.name: read_figures(place / "run.json", RUN) for place in places}
    return {name: run for name, run in records.items() if run.get("stage") in (*SAMPLED, *PREFERRED)}


def read_figures(path: Path, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The JSON object in one of the recipe's files, or an empty one if it is missing. NaN and infinity become None."""
    if not path.is_file():
        return {}
    content = finite(read_object(path, "run its stage again"))
    check_fields(content, kinds, str(path))
    return content


def finite(value: Any) -> Any:
    """A JSON value with None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarise(recipe: Recipe) -> dict[str, Any]:
    """All figures of summary.json; None if undefined or not measured."""
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
    """Write folder/summary.json. The demo calls it once more at the end, to include the report's own time."""
    with atomic_write(folder / "summary.json") as file:
        json.dump(summarise(read_recipe(folder)), file, indent=2, allow_nan=False)
