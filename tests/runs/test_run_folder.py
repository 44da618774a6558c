"""A run refused before its first step leaves its folder as it found it; an old run goes only with a first step."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tutelage.errors import InputError
from tutelage.runs import run_folder
from tutelage.runs.run import Interrupted, Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class TeaConfig(RunConfig):
    device: str = "cpu"
    dtype: str = "fp32"


TEA = TeaConfig()
OTHER = replace(TEA, seed=1, overwrite=True)


def content(folder: Path) -> dict[str, bytes | None]:
    """Everything in it: files with their bytes, folders with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def start(place: Path, config: TeaConfig = TEA) -> Run:
    (place / "leaves.jsonl").write_text("green")
    return Run(place / "runs" / "tea", stage="tea", config=config, inputs={"leaves": place / "leaves.jsonl"})


def refused(place: Path, config: TeaConfig = TEA) -> None:
    """As a stage is that finds a fault in its input: the log has been started, and files have been written."""
    with pytest.raises(InputError, match="no tea"), start(place, config) as tea:
        tea.restore()
        (tea.out / "tokenizer.json").write_text("half a result")
        raise InputError("no tea")


def finished(place: Path) -> Path:
    with start(place) as tea:
        (tea.out / "model.safetensors").write_bytes(b"weights")
        (tea.out / "value").mkdir()
        (tea.out / "value" / "model.safetensors").write_bytes(b"more")
        tea.log(1, warmth=1.0)
        tea.finish({"cups": 2})
    return tea.out


def stopped(place: Path, config: TeaConfig = TEA) -> Path:
    with pytest.raises(Interrupted), start(place, config) as tea:
        tea.log(1, warmth=1.0)
        tea.stop_requested = True
        tea.checkpoint(1, dict)
    return tea.out


def test_nothing_is_left_of_a_refused_run(tmp_path: Path) -> None:
    refused(tmp_path)
    assert not (tmp_path / "runs").exists()  # nor the folder that was made for it
    (tmp_path / "runs" / "tea").mkdir(parents=True)
    refused(tmp_path)
    assert content(tmp_path / "runs") == {"tea": None}  # a folder that was there stays


def test_an_error_in_the_first_step_leaves_nothing_and_one_after_it_the_log(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), start(tmp_path) as tea:
        1 / 0  # noqa: B018
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ZeroDivisionError), start(tmp_path) as tea:
        tea.log(1, warmth=1.0)
        1 / 0  # noqa: B018
    assert (tea.out / "metrics.jsonl").read_text().count("\n") == 1


def test_a_resumed_run_keeps_its_checkpoint_when_it_is_refused(tmp_path: Path) -> None:
    out = stopped(tmp_path)
    with pytest.raises(InputError), start(tmp_path):
        raise InputError("no water today")
    with start(tmp_path) as tea:
        state = tea.restore()
    assert state is not None and state["step"] == 1 and (out / "metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("earlier", [finished, stopped])
def test_the_replaced_run_is_back_if_its_successor_is_refused(earlier: object, tmp_path: Path) -> None:
    assert callable(earlier)
    before = content(earlier(tmp_path))
    refused(tmp_path, OTHER)
    after = content(tmp_path / "runs" / "tea")
    assert {name: data for name, data in after.items() if name != "checkpoints/lock"} == {
        name: data for name, data in before.items() if name != "checkpoints/lock"
    }
    with start(tmp_path, OTHER) as tea:
        tea.finish({"cups": 3})
    assert set(content(tea.out)) == {"run.json"}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["rename", "after"])
def test_the_replaced_run_survives_a_kill(moment: str, tmp_path: Path) -> None:
    """Killed while the old run is set aside, or after it before the first step: the next start finds the old run."""
    before = content(finished(tmp_path))
    code = f"""
import os, sys, pathlib
sys.path[:0] = {sys.path!r}
from test_run_folder import start, OTHER, Path
moves = []
original = pathlib.Path.rename
def rename(self, target):
    if {moment!r} == "rename" and len(moves) == 2: os.kill(os.getpid(), 9)
    moves.append(target)
    return original(self, target)
pathlib.Path.rename = rename
tea = start(Path({str(tmp_path)!r}), OTHER)
(tea.out / "tokenizer.json").write_text("half a result")
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "run.json" not in content(tmp_path / "runs" / "tea") or moment == "rename"
    assert start(tmp_path).finished
    assert content(tmp_path / "runs" / "tea") == before


def test_a_refusal_after_a_kill_blocks_nothing(tmp_path: Path) -> None:
    """A run killed in its first steps has left a log and its mark; a refusal after it keeps the folder usable."""
    tea = start(tmp_path)
    tea.log(1, warmth=1.0)
    assert tea.folder.lock
    tea.folder.lock.close()  # as the end of the process does
    refused(tmp_path, replace(TEA, seed=5))
    refused(tmp_path, replace(TEA, seed=6))
    with start(tmp_path) as again:
        assert not again.finished


def test_only_a_lock_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "runs" / "tea" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "tea" / "checkpoints" / "lock").touch()
    with start(tmp_path) as tea:
        assert not tea.finished


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_holds_no_run_is_never_touched(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "runs" / "tea" / "chapters").mkdir(parents=True)
    (tmp_path / "runs" / "tea" / "chapters" / "thesis.tex").write_text("three years of work")
    before = content(tmp_path / "runs")
    with pytest.raises(InputError, match="not empty and holds no run") as told:
        start(tmp_path, replace(TEA, overwrite=overwrite))
    assert ("--overwrite replaces runs alone" in str(told.value)) == overwrite
    assert content(tmp_path / "runs") == before
    with pytest.raises(InputError, match=r"leaves.jsonl: is a file, not a folder"):
        Run(tmp_path / "leaves.jsonl", stage="tea", config=TEA, inputs={})


def test_other_runs_inside_and_inputs_inside_are_not_replaced(tmp_path: Path) -> None:
    out = finished(tmp_path)
    with pytest.raises(InputError, match="is what --base reads"):
        Run(out, stage="tea", config=OTHER, inputs={"base": out / "value"})
    (out / "child").mkdir()
    (out / "child" / "run.json").write_text("{}")
    with pytest.raises(InputError, match="other runs are in it"):
        start(tmp_path, OTHER)
    assert (out / "run.json").is_file() and (out / "model.safetensors").is_file()


def test_a_lock_whose_folder_was_deleted_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiting process gets the lock of a file that is gone; it must lock the file that is there now."""
    tea = start(tmp_path)
    opened = run_folder.open if hasattr(run_folder, "open") else open
    calls: list[int] = []

    def reopen(path: Path, mode: str) -> object:
        file = opened(path, mode)
        if not calls:
            tea.folder.close(failed=True)  # between opening and locking
        calls.append(1)
        return file

    monkeypatch.setattr(run_folder, "open", reopen, raising=False)
    with start(tmp_path) as again:
        assert len(calls) == 2 and again.folder.lock
        assert os.path.samestat(os.fstat(again.folder.lock.fileno()), os.stat(again.out / "checkpoints" / "lock"))
