"""`tutelage doctor`: facts about this machine; with `--rl`, checks of the installed PPO.

nothing  ->  a short table on the terminal;  --rl  ->  one line per check
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tutelage.runs.machine import facts


def doctor(rl: bool = False) -> None:
    """Describe this machine: which device and precision training will use and why, and which packages are missing.

    rl: Instead, train the installed PPO on small problems with known answers. This takes less than a minute.

    Example: tutelage doctor
    """
    if rl:
        return check_ppo()
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
