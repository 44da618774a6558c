"""Write report.html, one page that opens offline, and summary.json, the same figures for programs.

    run.json, metrics.jsonl, evaluation.json of every stage -> table, samples, curves, lineage, costs

The page has no scripts and loads nothing; its Content-Security-Policy forbids both. It shows text that models wrote, so
every value is escaped. A stage that has not run gets a line that says so. The page's text, in English and Chinese, is
in report.html.jinja.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from tutelage.atomic import atomic_write
from tutelage.kinds import is_finite
from tutelage.recipe.curves import draw_curves, inks_of, kl_budget
from tutelage.recipe.summary import PREFERRED, SAMPLED, Recipe, read_recipe, summarise, write_summary
from tutelage.runs.log import clock

NONE = "–"
NO_BREAK = "\N{NO-BREAK SPACE}"
STAGE_INK = {"pretrain": "base"}  # stages drawn in the colour of another name; those without a colour are grey


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How the page opens. A reader can switch the language on the page."""

    language: Literal["en", "zh"] = "en"
    """Language in which the page opens: en (English) or zh (Chinese)."""


def report(out: tyro.conf.Positional[Path], config: ReportConfig = ReportConfig()) -> None:
    """Write report.html and summary.json into a recipe's folder, from the stages that have finished so far.

    out: Folder of the recipe, such as runs/demo.

    Example: tutelage report runs/demo
    """
    recipe = read_recipe(out)
    with atomic_write(out / "report.html") as file:
        file.write(render(recipe, config))
    write_summary(out)
    print(f"{out / 'report.html'}: open it in any browser")


def render(recipe: Recipe, config: ReportConfig) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=ChainableUndefined,  # a figure that an older run did not record becomes a dash, not an error
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    models = recipe.evaluation.get("models", {})
    stage_costs = costs(recipe)
    peaks = [row["memory"] for row in stage_costs if row["memory"] and row["stage"] in recipe.stages]
    return environment.get_template("report.html.jinja").render(
        language=config.language,
        name=recipe.folder.resolve().name,
        finished=recipe.latest.get("finished", "")[:10],
        summary=summarise(recipe),
        models=summarise(recipe)["models"],
        order=recipe.models,
        inks=inks_of(recipe),
        sampled=recipe.siblings(SAMPLED),
        preferred=recipe.siblings(PREFERRED),
        evaluation=recipe.evaluation,
        evaluated=[model for model in recipe.models if model in models],
        prompts=recipe.evaluation.get("prompts", NONE),
        samples=recipe.evaluation.get("samples", []),
        charts={
            name: Markup(drawing) for name, drawing in draw_curves(recipe).items()
        },  # safe: matplotlib escapes text
        kl_budget=kl_budget(recipe),
        parameters=rounded((recipe.results("pretrain") or recipe.results("import")).get("parameters")),
        imported=recipe.results("import"),
        machine=machine(recipe),
        costs=stage_costs,
        peak=max(peaks, default=None),
        rankings=recipe.results("rank"),
        reward_model=recipe.results("reward"),
        policies=("ppo", "ppo-ptx", *recipe.siblings(SAMPLED)),
        results=recipe.results,
        data=recipe.data,
        duplicates=sum(recipe.data.get("duplicates", {}).values()),
        tokenizer=recipe.results("tokenizer"),
        lineage=lineage(recipe),
    )


def machine(recipe: Recipe) -> dict[str, str]:
    """The device of the last run that recorded one, in both languages."""
    for run in reversed(recipe.runs.values()):
        if device := run.get("device"):
            kind = f"{device.get('machine') or ''} {device.get('kind', '').upper()}".strip()
            threads, dtype = device.get("threads", NONE), device.get("dtype", NONE)
            return {
                "en": f"{kind}, {threads} thread{'s' * (threads != 1)}, {dtype}",
                "zh": f"{kind}，{threads} 线程，{dtype}",
            }
    return {}


def costs(recipe: Recipe) -> list[dict[str, Any]]:
    """Per stage: seconds, peak memory in bytes, and both in percent of the largest, for the bars."""
    rows = [(stage, recipe.cost(stage)) for stage in (*recipe.stages, *recipe.siblings())]
    inks = inks_of(recipe) | STAGE_INK
    rows = [(stage, cost) for stage, cost in rows if any(value is not None for value in cost.values())]
    longest = largest([cost["seconds"] for _, cost in rows])
    most = largest([cost["peak_memory_bytes"] for _, cost in rows])
    return [
        {
            "stage": stage,
            "ink": inks.get(stage, "axis"),
            "seconds": cost["seconds"],
            "time_share": round(100 * (cost["seconds"] or 0) / longest, 1),
            "memory": cost["peak_memory_bytes"],
            "memory_share": round(100 * (cost["peak_memory_bytes"] or 0) / most, 1),
        }
        for stage, cost in rows
    ]


def largest(values: Iterable[float | None]) -> float:
    return max((value for value in values if value), default=1.0)


def lineage(recipe: Recipe) -> list[dict[str, Any]]:
    """Per run: its inputs with their hashes, its fingerprint and its settings."""
    return [
        {
            "stage": stage,
            "parents": [
                {"label": parent_label(recipe, source["path"]), "sha256": source["sha256"]}
                for source in run.get("inputs", {}).values()
            ],
            "fingerprint": run.get("fingerprint", NONE),
            "config": run.get("config", {}),
        }
        for stage, run in recipe.runs.items()
    ]


def parent_label(recipe: Recipe, path: str) -> str:
    """A path relative to the recipe's folder; outside of it the file name alone, because pages are passed on."""
    folder, parent = recipe.folder.resolve(), Path(path).resolve()
    return str(parent.relative_to(folder)) if parent.is_relative_to(folder) else parent.name


def number(value: Any, digits: int = 2) -> str:
    """A number with a true minus sign; a dash for anything else."""
    return f"{value:z,.{digits}f}".replace("-", "−") if is_finite(value) else NONE


def percent(value: Any, digits: int = 0) -> str:
    return f"{number(100 * value, digits)}{NO_BREAK}%" if is_finite(value) else NONE


def interval(pair: Any) -> str:
    """A confidence interval: [.62, .71] -> 62–71 %."""
    if not (isinstance(pair, list) and len(pair) == 2 and all(map(is_finite, pair))):
        return ""
    return f"{100 * pair[0]:.0f}–{100 * pair[1]:.0f}{NO_BREAK}%"


def count(value: Any) -> str:
    return number(value, 0)


def gib(size: Any) -> str:
    return number(size / 2**30, 2) if is_finite(size) else NONE


def duration(seconds: Any) -> str:
    return clock(seconds) if is_finite(seconds) else NONE


def spelled_out(seconds: float, *units: str) -> str:
    """508, "h", "min", "s" -> 8 min 28 s."""
    parts = clock(seconds).split(":")
    return " ".join(f"{int(part)} {unit}" for part, unit in zip(parts, units[-len(parts) :], strict=True))


def rounded(parameters: Any) -> str:
    """4_200_192 -> 4.2M."""
    if not is_finite(parameters):
        return ""
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}k"


FILTERS = {
    "number": number,
    "percent": percent,
    "interval": interval,
    "count": count,
    "gib": gib,
    "clock": duration,
    "duration_en": lambda seconds: spelled_out(seconds, "h", "min", "s"),
    "duration_zh": lambda seconds: spelled_out(seconds, "小时", "分", "秒"),
}
