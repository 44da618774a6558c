"""A recipe's folder -> report.html, one page that opens offline, and summary.json, the same figures for programs.

    run.json, metrics.jsonl, evaluation.json of every stage -> table, samples, curves, lineage, costs

The page holds no script and asks for nothing: its policy forbids both. Models wrote the answers on it, so every value
is escaped. A stage that has not run gets a line that says so. The words, in English and Chinese, stand in
report.html.jinja.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from tutelage.atomic import atomic_write
from tutelage.recipe.curves import draw_curves, inks_of, kl_budget
from tutelage.recipe.summary import PREFERRED, SAMPLED, Recipe, read_recipe, summarise, write_summary
from tutelage.runs.log import clock

NONE = "–"
INK = {"pretrain": "base"}  # the colours of stages that have none by their own name; the rest are neutral


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How the page opens; a reader can change it there."""

    language: Literal["en", "zh"] = "en"
    """Language in which the page opens: en or zh."""


def report(out: tyro.conf.Positional[Path], config: ReportConfig = ReportConfig()) -> None:
    """Write report.html and summary.json into the folder of a recipe, whatever of it has run so far.

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
        undefined=ChainableUndefined,  # a figure that an older run did not record is a dash, not a crash
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "percent": percent, "interval": interval, "count": count, "gib": gib, "clock": duration,
        "words_en": lambda s: spoken(s, "h", "min", "s"), "words_zh": lambda s: spoken(s, "小时", "分", "秒"),
    }  # fmt: skip
    models = recipe.evaluation.get("models", {})
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
        charts={name: Markup(drawing) for name, drawing in draw_curves(recipe).items()},  # numbers and our own names
        kl_budget=kl_budget(recipe),
        parameters=rounded((recipe.results("pretrain") or recipe.results("import")).get("parameters")),
        imported=recipe.results("import"),
        machine=machine(recipe),
        costs=costs(recipe),
        peak=max(
            (row["memory"] for row in costs(recipe) if row["memory"] and row["stage"] in recipe.stages), default=None
        ),
        ranked=recipe.results("rank"),
        judged=recipe.results("reward"),
        policies=("ppo", "ppo-ptx", *recipe.siblings(SAMPLED)),
        results=recipe.results,
        data=recipe.data,
        duplicates=sum(recipe.data.get("duplicates", {}).values()),
        words=recipe.results("tokenizer"),
        lineage=lineage(recipe),
    )


def machine(recipe: Recipe) -> dict[str, str]:
    """The device of the last run that names one, in both languages."""
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
    """Per stage: seconds, peak bytes, and each as a share (%) of the largest, for the bars."""
    rows = [(stage, recipe.cost(stage)) for stage in (*recipe.stages, *recipe.siblings())]
    inks = inks_of(recipe) | INK
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
    """Per run: what it was made from with hashes, its own fingerprint, its settings."""
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
    """A path inside the recipe's folder as seen from there; of others the name alone: pages get passed on."""
    folder, place = recipe.folder.resolve(), Path(path).resolve()
    return str(place.relative_to(folder)) if place.is_relative_to(folder) else place.name


def number(value: Any, digits: int = 2) -> str:
    """With a true minus sign; a dash for what is not a number."""
    return f"{value:z,.{digits}f}".replace("-", "−") if isinstance(value, int | float) else NONE


def percent(value: Any, digits: int = 0) -> str:
    return f"{number(100 * value, digits)} %" if isinstance(value, int | float) else NONE


def interval(pair: Any) -> str:
    """[.62, .71] -> 62–71 %."""
    return f"{100 * pair[0]:.0f}–{100 * pair[1]:.0f} %" if isinstance(pair, list) and None not in pair else ""


def count(value: Any) -> str:
    return number(value, 0)


def gib(size: Any) -> str:
    return number(size / 2**30, 2) if isinstance(size, int | float) else NONE


def duration(seconds: Any) -> str:
    return clock(seconds) if isinstance(seconds, int | float) else NONE


def spoken(seconds: float, hours: str, minutes: str, rest: str) -> str:
    """508 -> 8 min 28 s."""
    parts = zip(clock(seconds).split(":"), (hours, minutes, rest)[-clock(seconds).count(":") - 1 :], strict=True)
    return " ".join(f"{int(part)} {unit}" for part, unit in parts)


def rounded(parameters: Any) -> str:
    if not isinstance(parameters, int | float):
        return ""
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e6 else f"{parameters / 1e3:.0f}k"
