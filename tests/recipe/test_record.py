"""benchmarks/record.py: figures and table with machine, versions and commit; and every benchmark leaves them."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import record
import torch
from record import Record

BENCHMARKS = Path(record.__file__).parent
FIGURES = {"ours": [3.25, 3.5], "theirs": [1.0]}
TABLE = ["| | s |", "|---|---|", "| ours | 3.4 |"]


def git(folder: Path, *words: str) -> str:
    who = {f"GIT_{role}_{what}": "x@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", *words], cwd=folder, env=os.environ | who, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in its own repository, one commit old."""
    package = tmp_path / "tree" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("one = 1\n")
    git(package, "init", "--quiet", "--initial-branch", "main", "..")
    git(package, "add", ".")
    git(package, "commit", "--quiet", "--message", "one")
    monkeypatch.setattr(record, "PACKAGE", package)
    return package


def leave(out: Path, **more: object) -> tuple[dict, list[str]]:
    """What a benchmark of three lines leaves: the JSON, and the lines of the Markdown."""
    sitting = Record(out / "toy", argparse.Namespace(rounds=2, out=out), **more)  # type: ignore[arg-type]
    for line in TABLE:
        sitting.say(line)
    sitting.leave(FIGURES)
    return json.loads((out / "toy.json").read_text()), (out / "toy.md").read_text().splitlines()


def test_both_files_name_machine_versions_and_commit(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks/toy.py", "--rounds", "2", "--run", "my runs"])
    facts, (head, empty, *table) = leave(tmp_path / "out")
    assert capsys.readouterr().out.splitlines() == table == TABLE and not empty
    assert facts["figures"] == FIGURES
    assert facts["command"] == "python benchmarks/toy.py --rounds 2 --run 'my runs'"
    assert facts["settings"] == {"rounds": 2, "out": str(tmp_path / "out")}
    (last,) = (tree.parent / ".git" / "logs" / "HEAD").read_text().splitlines()
    assert facts["commit"] == last.split()[1] and facts["changed"] is False
    assert {name: facts["versions"][name] for name in ("Python", "torch", "numpy", "tutelage")} == {
        "Python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "numpy": np.__version__,
        "tutelage": importlib.metadata.version("tutelage"),
    }
    machine = facts["machine"]
    assert 1 <= machine["cores"] <= machine["cores_of_the_machine"] and machine["memory_bytes"] > 2**28
    assert machine["processor"] and (machine["gpu"] is None) != torch.cuda.is_available()
    assert machine["gflops"].keys() == {"fp32", "bf16"} and all(rate > 0.1 for rate in machine["gflops"].values())
    versions = [f"{name} {version}" for name, version in facts["versions"].items()]
    for told in (machine["gpu"] or machine["processor"], *versions, f"commit {facts['commit'][:7]};"):
        assert told in head
    assert facts["peer_versions"] is None and "peer" not in head


def test_changes_since_the_commit_are_recorded(tree: Path, tmp_path: Path) -> None:
    (tree / "code.py").write_text("one = 2\n")
    facts, (head, *_) = leave(tmp_path / "out")
    assert facts["changed"] is True and f"commit {facts['commit'][:7]} with changes" in head
    git(tree, "checkout", "--quiet", "--", ".")
    (tree / "new.py").write_text("two = 2\n")
    assert leave(tmp_path / "out")[0]["changed"] is True


def test_the_commit_is_that_of_the_code_that_ran(tree: Path, tmp_path: Path) -> None:
    """Somebody commits while a benchmark runs: its process still has the old code."""
    before = git(tree, "rev-parse", "HEAD").strip()
    sitting = Record(tmp_path / "toy", argparse.Namespace())
    git(tree, "commit", "--quiet", "--allow-empty", "--message", "two")
    sitting.leave(FIGURES)
    assert git(tree, "rev-parse", "HEAD").strip() != before
    assert json.loads((tmp_path / "toy.json").read_text())["commit"] == before


def test_code_in_no_repository_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(record, "PACKAGE", tmp_path)
    facts, (head, *_) = leave(tmp_path)
    assert facts["commit"] is facts["changed"] is None and "; no commit; " in head
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.code(tmp_path)["commit"] is None  # no git either


def test_a_peers_versions_come_from_its_own_python(tree: Path, tmp_path: Path) -> None:
    """One that has another numpy than we have, and a package that we lack."""
    for name, version in (("numpy", "0.1"), ("trl", "9.9.9")):
        (folder := tmp_path / f"{name}-{version}.dist-info").mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    theirs = tmp_path / "python"
    theirs.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    theirs.chmod(0o755)
    facts, (head, *_) = leave(tmp_path, peer=(str(theirs), ["trl==9.*", "numpy>=0", "torch"]))
    told = {"Python": platform.python_version(), "trl": "9.9.9", "numpy": "0.1", "torch": facts["versions"]["torch"]}
    assert facts["peer_versions"] == told and facts["versions"]["numpy"] == np.__version__
    assert f"the peer's: Python {platform.python_version()}, trl 9.9.9, numpy 0.1, torch" in head


def test_a_peer_without_a_package_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no-such-package.*the peer needs torch, no-such-package==1"):
        Record(tmp_path / "toy", argparse.Namespace(), peer=(sys.executable, ["torch", "no-such-package==1"]))


@pytest.mark.parametrize("program", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_leaves_a_record(program: Path) -> None:
    source = program.read_text()
    if "__main__" in source:
        assert re.search(r"\bRecord\(\w+\.out\b", source) and "record.leave(" in source and "--out" in source
    else:
        assert program.stem in ("json_schemas", "peers", "record")
