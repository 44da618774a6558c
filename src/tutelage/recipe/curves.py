"""Draws logged metrics as SVG charts for the report page.

    Recipe -> {chart name: <svg>...</svg>}

Titles, units and legends are on the page, in two languages; a drawing contains lines and numbers only. matplotlib draws
with placeholder colours, which are replaced by CSS variables of the page, so that a drawing is legible in light mode,
in dark mode and in print. A chart is left out if nothing was logged, or nothing but 0: PPO's clip fraction is 0 as long
as a rollout makes one step.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tutelage.kinds import is_finite
from tutelage.recipe.summary import PREFERRED, SAMPLED, Recipe

# Placeholder colours, which occur nowhere else. Each stands for the CSS variable of its name.
OWN = ("base", "sft", "best-of-4", "best-of-16", "ppo", "ppo-ptx", "reward")
OTHERS = ("other-1", "other-2", "other-3", "other-4")
INKS = ("axis", "grid", "text", *OWN, *OTHERS)
INK = {name: f"#0000{i + 1:02x}" for i, name in enumerate(INKS)}
PREFERENCE_METRICS = ("accuracy", "reward_margin", "chosen_logprob")
PPO_METRICS = (
    "score",
    "judge_score",
    "kl",
    "length",
    "end_of_turn_rate",
    "entropy",
    "clip_fraction",
    "explained_variance",
    "ptx_loss",
    "ptx_gradient_ratio",
)
LOWEST = {"ppo-explained_variance": -1.0}  # lower axis limit: an untrained value head may start far below 0
KL_BUDGET = 8.0  # nats per response, for a run whose config has none
FAR = 4.0  # a level above this multiple of the axis limit is not drawn, because it would flatten the curves
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text instead of outlines: smaller, searchable, in the page's font
    "font.size": 10,
    "axes.edgecolor": INK["axis"],
    "axes.labelcolor": INK["text"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK["grid"],
    "grid.linewidth": 0.6,
    "xtick.color": INK["axis"],
    "ytick.color": INK["axis"],
    "xtick.labelcolor": INK["text"],
    "ytick.labelcolor": INK["text"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK["text"],
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Curve:
    """One metric of one stage, and how to draw it."""

    stage: str
    metric: str
    ink: str
    style: str = "plain"  # plain, dashed, noisy (faint values with their moving average), dotted (few values)


CURVES: dict[str, tuple[Curve, ...]] = {
    "pretrain-loss": (Curve("pretrain", "loss", "base", "noisy"),),
    "pretrain-heldout": (Curve("pretrain", "heldout_bits_per_byte", "base", "dotted"),),
    "sft-loss": (Curve("sft", "loss", "sft", "noisy"), Curve("sft", "heldout_loss", "sft", "dotted")),
    "reward-loss": (Curve("reward", "loss", "reward", "noisy"),),
    "reward-accuracy": (Curve("reward", "accuracy", "reward", "noisy"),),
}


def policy_curves(recipe: Recipe) -> dict[str, tuple[Curve, ...]]:
    """The charts of PPO, PPO-ptx and the other policies in the folder."""
    inks = inks_of(recipe)
    sampled, preferred = (recipe.siblings(stages) for stages in (SAMPLED, PREFERRED))
    both = Curve("ppo", "", "ppo", "dashed"), Curve("ppo-ptx", "", "ppo-ptx")
    on_rollouts = *both, *(Curve(name, "", inks[name]) for name in sampled)
    on_preferences = tuple(Curve(name, "", inks[name], "noisy") for name in preferred)
    charts = [("ppo", metric, on_rollouts) for metric in PPO_METRICS]
    charts += [("preference", metric, on_preferences) for metric in PREFERENCE_METRICS]
    return {
        f"{kind}-{metric}": tuple(replace(curve, metric=metric) for curve in curves) for kind, metric, curves in charts
    }


def inks_of(recipe: Recipe) -> dict[str, str]:
    """{model or run: its colour on the page}. Models that are not the recipe's share four colours in turn."""
    inks = {name: name for name in OWN}
    for names in (recipe.siblings(SAMPLED), recipe.siblings(PREFERRED), recipe.models):
        others = [name for name in names if name not in inks]
        inks |= {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}
    return inks


def draw_curves(recipe: Recipe) -> dict[str, str]:
    """All charts that have something to show, by name."""
    charted = CURVES | policy_curves(recipe)
    logged = {curve.stage: recipe.metrics(curve.stage) for curves in charted.values() for curve in curves}
    reward = recipe.results("reward")
    levels = {"reward-accuracy": reward.get("ceiling"), "ppo-kl": kl_budget(recipe)}
    ends = {"reward-loss": reward.get("heldout_loss"), "reward-accuracy": reward.get("accuracy")}
    charts = {}
    with matplotlib.rc_context(SETTINGS):
        for name, curves in charted.items():
            drawn = [(curve, *values(logged[curve.stage], "step", curve.metric)) for curve in curves]
            if any(y.any() for _, _, y in drawn):
                charts[name] = draw_chart(name, drawn, levels.get(name), ends.get(name))
        if any(logged[curve.stage] for curve in charted["ppo-score"]):
            charts["frontier"] = draw_frontier(recipe, logged)
    return charts


def kl_budget(recipe: Recipe) -> float:
    return recipe.setting("ppo-ptx", "kl_budget") or recipe.setting("ppo", "kl_budget") or KL_BUDGET


def values(lines: Sequence[dict[str, Any]], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of two metrics, from the lines in which both are logged and finite."""
    pairs = [(line[x], line[y]) for line in lines if is_finite(line.get(x)) and is_finite(line.get(y))]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def moving_average(y: np.ndarray) -> np.ndarray:
    """The moving average over a twentieth of the run; near its ends the window is cut off."""
    window = np.ones(2 * (y.size // 40) + 1)
    return np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")


def draw_chart(
    name: str, drawn: Sequence[tuple[Curve, np.ndarray, np.ndarray]], level: float | None, end: float | None
) -> str:
    """Curves over steps, with an optional horizontal level and an optional held-out value at the last step."""
    figure, axes = canvas(3.6, 2.2)
    for curve, x, y in drawn:
        if y.size:
            draw_curve(axes, curve, x, y)
            if end is not None:
                axes.plot(x[-1], end, color=INK[curve.ink], marker="o", markersize=6, clip_on=False)
    if level is not None and level <= FAR * axes.get_ylim()[1]:
        axes.axhline(level, color=INK["text"], linewidth=1, linestyle=(0, (1, 2)))
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(f"{level:.3g}", (1, level), (0, 2), **place, ha="right", va="bottom", fontsize=9)
    if name in LOWEST and axes.get_ylim()[1] > LOWEST[name]:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], LOWEST[name]))
    return svg(figure, name)


def draw_curve(axes: Axes, curve: Curve, x: np.ndarray, y: np.ndarray) -> None:
    ink = INK[curve.ink]
    if curve.style == "noisy":
        axes.plot(x, y, color=ink, linewidth=0.8, alpha=0.35)
        axes.plot(x, moving_average(y), color=ink)
    elif curve.style == "dotted":
        axes.plot(x, y, color=ink, linewidth=1, marker="o", markersize=4)
    else:
        axes.plot(x, y, color=ink, linestyle=(0, (4, 1.5)) if curve.style == "dashed" else "-")


def draw_frontier(recipe: Recipe, logged: dict[str, list[dict[str, Any]]]) -> str:
    """Score against KL: one point per PPO iteration, and a named diamond per model measured on held-out prompts."""
    figure, axes = canvas(5.6, 3.6)
    inks = inks_of(recipe)
    for stage in ("ppo", "ppo-ptx", *recipe.siblings(SAMPLED)):
        x, y = values(logged[stage], "kl", "score")
        if y.size:
            ink = INK[inks[stage]]
            axes.plot(x, y, color=ink, linewidth=0.7, alpha=0.5)
            axes.plot(x, y, color=ink, linestyle="", marker="^" if stage == "ppo" else "o", markersize=4.5)
    for model, figures in recipe.evaluation.get("models", {}).items():
        if model != "base" and figures.get("kl") is not None and figures.get("reward") is not None:
            point = figures["kl"], figures["reward"]
            axes.plot(*point, color=INK[inks[model]], marker="D", markersize=8, fillstyle="none")
            axes.annotate(model, point, (8, -3), textcoords="offset points", fontsize=10, parse_math=False)
    right, budget = 1.15 * axes.get_xlim()[1], kl_budget(recipe)  # with room for the rightmost name
    if budget <= FAR * right:
        axes.axvline(budget, color=INK["text"], linewidth=1, linestyle=(0, (1, 2)))
        right = max(right, budget * 1.05)
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), right)
    axes.set_xlabel("KL")
    axes.set_ylabel("score")
    return svg(figure, "frontier")


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of the given size in inches. Margins are fixed, because automatic layout takes .1 s per chart."""
    figure = Figure(figsize=(width, height))
    left, bottom = (0.44, 0.3) if width < 4 else (0.58, 0.5)
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + 0.12) / width, 1 - (bottom + 0.1) / height))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", visible=False)
    return figure, axes


def svg(figure: Figure, name: str) -> str:
    """The drawing as inline SVG: without XML header, size, metadata and names of groups."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # ids are hashes: reproducible, and different in each chart
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font-family: [^;]*; | transform=\"rotate\(-0[^)]*\)\"", "", text)  # the page sets the font
    for ink, placeholder in INK.items():
        text = text.replace(placeholder, f"var(--{ink})")
    return re.sub(r"\n\s*", "\n", text)
