"""An evaluation as a table of text: a row for each model, a column for each figure that at least one model has.

evaluation.json -> lines
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]
NONE = "-"


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """The tables of an evaluation: the responses of models, and how models and rewards order the rankings."""
    tables = [table(report["models"], RESPONSES), table(report.get("rankings", {}), RANKINGS)]
    return [line for rows in tables for line in rows]


def table(rows: Mapping[str, Row], columns: Sequence[Column]) -> list[str]:
    """Aligned lines; none without rows."""
    if not rows:
        return []
    cells = [[title, *(write(row) for row in rows.values())] for title, write in columns]
    kept = [["model", *rows], *(column for column in cells if set(column[1:]) != {NONE})]
    aligned = [[cell.rjust(max(map(len, column))) for cell in column] for column in kept[1:]]
    names = [name.ljust(max(map(len, kept[0]))) for name in kept[0]]
    return ["  ".join(line) for line in zip(names, *aligned, strict=True)]


def number(name: str, form: str) -> Callable[[Row], str]:
    """Writes one figure of a row."""
    return lambda row: NONE if row.get(name) is None else f"{row[name]:{form}}"


def share(name: str, interval: str) -> Callable[[Row], str]:
    """Writes a share with its confidence interval: 61.0% [55.1, 66.8]."""

    def write(row: Row) -> str:
        if row.get(name) is None:
            return NONE
        ends = [f"{100 * end:.1f}" for end in row.get(interval) or ()]
        return f"{row[name]:.1%}" + (f" [{', '.join(ends)}]" if ends else "")

    return write


def kl(row: Row) -> str:
    """The KL in nats per response, marked where it is an upper bound."""
    if row.get("kl") is None:
        return NONE
    return f"{'<= ' if row.get('kl_is_bound') else ''}{row['kl']:.2f}"


RESPONSES: list[Column] = [
    ("wins by gold", share("gold_win_rate", "gold_win_rate_ci")),
    ("wins by reward", share("reward_win_rate", "reward_win_rate_ci")),
    ("gold", number("gold", ".3f")),
    ("reward", number("reward", ".3f")),
    ("KL", kl),
    ("bits/byte", number("bits_per_byte", ".3f")),
    ("tokens", number("length", ".1f")),
    ("ended", number("end_of_turn_rate", ".0%")),
    ("distinct-2", number("distinct_2", ".3f")),
    ("answer fit", number("answer_fit", ".0%")),
]
RANKINGS: list[Column] = [
    ("orders right", share("accuracy", "accuracy_ci")),
    ("of equal length", number("length_matched_accuracy", ".1%")),
    ("pairs", number("pairs", ",d")),
    ("judged by", lambda row: str(row["by"])),
]
