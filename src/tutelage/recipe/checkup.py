"""What a finished run says about its own soundness: a reward model's probe, an RL run's findings.

run.json  ->  lines of text
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import InputError
from tutelage.evals.reward_probe import probe_table, probe_warnings
from tutelage.runs.record import read_run

RL = ("ppo", "rloo", "grpo")


def checkup(run: Path) -> list[str]:
    """Raises InputError unless the folder is a finished run of reward, ppo, rloo or grpo that has been checked."""
    record = read_run(run)
    if record is None:
        raise InputError(f"doctor: {run} is not a finished run; give one of {', '.join(('reward', *RL))}")
    if record["stage"] not in ("reward", *RL):
        raise InputError(f"doctor: {run} is a run of {record['stage']}; give one of {', '.join(('reward', *RL))}")
    return list((reward_lines if record["stage"] == "reward" else rl_lines)(run, record))


def reward_lines(run: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """The probe's table, and what helps where a degenerate response wins."""
    if (found := record["results"].get("probe")) is None:
        raise InputError(f"doctor: {run} was trained by an earlier version, which made no probe; train it again")
    yield from probe_table(found)
    warnings = probe_warnings(found, record["config"]["reject_degenerate"])
    yield from [f"warning: {warning}" for warning in warnings] or ["no degenerate response wins"]


def rl_lines(run: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """The iteration that was kept, why the run stopped, and the monitor's findings."""
    results = record["results"]
    reason = f"; stopped: {results['stopped']}" if results["stopped"] else ""
    yield f"{run}: iteration {results['kept_iteration']} was kept{reason}"
    for finding in results["findings"]:
        yield f"iteration {finding['iteration']}: {finding['name']}: {finding['words']}"
    if not results["findings"]:
        yield "the monitor found nothing"
