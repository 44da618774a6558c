"""The record that every benchmark writes: OUT/<benchmark>.json and OUT/<benchmark>.md, with machine, versions, commit.

    record = Record(given.out / "generation", given)    before anything is measured, so that the commit is what runs
    record.say("| ... |")                               prints a line of the table and keeps it
    record.leave(figures)                               writes both files; the JSON holds the figures as measured

If a benchmark reuses figures of an earlier run, the commit is that of the run that wrote the table.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tutelage
from tutelage.atomic import atomic_write

PACKAGE = Path(*tutelage.__path__)
ASK = """
import importlib.metadata, json, platform, sys
print(json.dumps({"Python": platform.python_version()} | {n: importlib.metadata.version(n) for n in sys.argv[1:]}))
"""


def add_out(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder for the JSON and the table")


class Record:
    """One run of one benchmark. `peer`: the peer's interpreter, and the packages that it needs there."""

    def __init__(self, place: Path, given: Namespace, peer: tuple[str, Sequence[str]] | None = None):
        self.place = place
        self.lines: list[str] = []
        self.facts = {
            "command": shlex.join(["python", *sys.argv]),
            "settings": vars(given),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **code(PACKAGE),
            "peer_versions": peer_versions(*peer) if peer else None,
        }

    def say(self, line: str) -> None:
        """Print a line of the table and keep it."""
        print(line, flush=True)
        self.lines.append(line)

    def leave(self, figures: Any) -> None:
        """Write both files."""
        facts = self.facts | {"versions": versions(), "machine": machine()}
        with atomic_write(self.place.with_suffix(".json")) as file:
            json.dump(facts | {"figures": figures}, file, indent=1, default=str)
        with atomic_write(self.place.with_suffix(".md")) as file:
            file.write("\n".join([in_a_line(facts), "", *self.lines]) + "\n")


def code(folder: Path) -> dict[str, Any]:
    """The commit of this folder, and whether its files differ from it. Both are None outside a git repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
        except OSError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "changed": bool(git("status", "--porcelain")) if commit else None}


def peer_versions(python: str, needs: Sequence[str]) -> dict[str, str]:
    """{package: version} of these requirements as installed for that interpreter. Exits if one is missing."""
    names = [re.split(r"[^\w.-]", need)[0] for need in needs]
    done = subprocess.run([python, "-c", ASK, *names], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python}: {done.stderr.splitlines()[-1]}; the peer needs {', '.join(needs)}")
    return json.loads(done.stdout)


def versions() -> dict[str, str]:
    from tutelage.runs.machine import NAMED_VERSIONS, version

    return {"Python": platform.python_version()} | {name: version(name) for name in NAMED_VERSIONS}


def machine() -> dict[str, Any]:
    """Describe this machine.

    Called last, because it imports torch, and Linux counts the parent's memory in the peak of a new process.
    """
    import torch

    from tutelage.runs.device import choose_device
    from tutelage.runs.machine import MEASURED, gemm_rate, memory_bytes, name_of, processor, usable_cores

    device = choose_device()
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": usable_cores(),
        "cores_of_the_machine": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": device.threads,
        "gflops": {name_of(dtype): round(gemm_rate(dtype, device.torch_device), 1) for dtype in MEASURED},
    }


def in_a_line(facts: dict[str, Any]) -> str:
    """The line above the table: machine, versions, commit."""
    host = facts["machine"]
    rates = ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in host["gflops"].items())
    size = f"{host['cores']} of {host['cores_of_the_machine']} cores, {host['memory_bytes'] / 2**30:.1f} GiB"
    parts = [f"{host['gpu'] or host['processor']}, {size}, {rates}", listed(facts["versions"])]
    parts += [f"the peer's: {listed(facts['peer_versions'])}"] if facts["peer_versions"] else []
    commit = f"commit {facts['commit'][:7]}" if facts["commit"] else "no commit"
    parts.append(commit + (" with changes" if facts["changed"] else ""))
    return f"{'; '.join(parts)}; {facts['date'][:10]}: `{facts['command']}`"


def listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
