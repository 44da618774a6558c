"""`tutelage doctor`: what this machine is; with `--rl`, whether the installed PPO solves problems of known answer.

nothing  ->  a short list on the terminal;  --rl  ->  one line for each gate
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tutelage.runs.machine import facts


def doctor(rl: bool = False) -> None:
    """Say what this machine is, which device and precision training will use and why, and what is missing.

    With --rl, let the installed PPO solve small problems whose answers are known; it takes less than a minute.

    Example: tutelage doctor
    """
    if rl:
        return examine_ppo()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts(Path.cwd()):
        table.add_row(name, fact)
    return Console(highlight=False).print(table)


def examine_ppo() -> None:
    """One line for each gate. Leaves with exit code 1 if one fails: that is nothing a user did."""
    from tutelage.recipe.rl_selftest import (
        gates,  # here, so that a broken training does not keep a machine from its facts
    )

    failed = []
    for gate in gates():
        print(f"{'pass' if gate.passed else 'FAIL'}  {gate.name}: {gate.words}", flush=True)
        failed += [] if gate.passed else [gate.name]
    if failed:
        print(
            f"failed: {'; '.join(failed)}: a bug of ours or a broken installation, not your data; "
            "reinstall with make clean install, and report it with tutelage doctor's output if it stays",
            file=sys.stderr,
        )
        sys.exit(1)
