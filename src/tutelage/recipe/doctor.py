"""`tutelage doctor`: facts about this machine; what is wrong with a run; with `--rl`, checks of the installed PPO.

nothing  ->  a short table on the terminal;  a run  ->  its probe or its findings;  --rl  ->  one line per check
"""

import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from tutelage.errors import InputError
from tutelage.runs.machine import facts


def doctor(run: tyro.conf.Positional[Path | None] = None, rl: bool = False) -> None:
    """Describe this machine: which device and precision training will use and why, and which packages are missing.

    run: Instead, show what a reward model gives degenerate responses, or what the monitor found in an RL run.
    rl: Instead, train the installed PPO on small problems with known answers. This takes less than a minute.

    Example: tutelage doctor
    """
    if rl and run:
        raise InputError("doctor: give a run or --rl, not both")
    if rl:
        return check_ppo()
    if run:
        from tutelage.recipe.checkup import checkup  # loads torch, which describing the machine does without

        return print("\n".join(checkup(run)))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts(Path.cwd()):
        table.add_row(name, fact)
    return Console(highlight=False).print(table)


def check_ppo() -> None:
    """Print one line per check. Exits with code 1 if one fails, because that is never the user's mistake."""
    # Imported here, so that doctor still describes the machine if the training code cannot be imported.
    from tutelage.recipe.rl_selftest import checks

    failed = []
    for check in checks():
        print(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.details}", flush=True)
        failed += [] if check.passed else [check.name]
    if failed:
        print(
            f"failed: {'; '.join(failed)}: a bug in tutelage or a broken installation, not your data; reinstall with "
            "make clean install, and if it still fails report it with the output of tutelage doctor",
            file=sys.stderr,
        )
        sys.exit(1)
