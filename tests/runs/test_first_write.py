"""A run that is killed, or finds the disk full, at any of its file operations: the same command takes its folder up.

The operations are counted by Python's audit events, so that none is forgotten. Each life is a forked process.
"""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_run_folder import OTHER, TEA, TeaConfig, content, finished, start

from tutelage.errors import InputError
from tutelage.runs import run_folder

WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir")
DONE = 7  # exit status of a life that was over before its end could happen


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it has written; only a power cut would."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def live(place: Path, config: TeaConfig = TEA) -> None:
    """A run of three steps with a checkpoint after each, which writes a model and ends."""
    eager = replace(config, checkpoint_seconds=0.0)
    with start(place, eager) as tea:
        if tea.finished:
            return
        state = tea.restore()
        for step in range(state["step"] if state else 0, 3):
            tea.log(step + 1, warmth=1.0)
            tea.checkpoint(step + 1, lambda: {"leaves": torch.ones(2)})
        (tea.out / "model.safetensors").write_bytes(b"weights")
        tea.finish({"cups": 3})


def life(place: Path, config: TeaConfig, at: int, ends: Callable[[], None]) -> int:
    """Run `live` in another process, in which `ends` happens at this file operation below `place`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = 0

    def watch(event: str, given: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in WATCHED and given and str(given[0]).startswith(str(place / "runs")):
            seen += 1
            if seen == at:
                ends()

    try:
        sys.addaudithook(watch)
        live(place, config)
    except OSError:
        os._exit(3)
    except BaseException:
        os._exit(4)
    os._exit(0 if seen >= at else DONE)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Every operation, and in the quick suite every eighth.
STRIDES = pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.slow)])
ENDS = pytest.mark.parametrize("ends", [kill, full])


@STRIDES
@ENDS
def test_the_same_command_takes_it_up_wherever_it_ended(tmp_path: Path, ends: Callable[[], None], stride: int) -> None:
    statuses: list[int] = []
    while DONE not in statuses:
        place = tmp_path / str(len(statuses))
        place.mkdir()
        statuses.append(life(place, TEA, 1 + stride * len(statuses), ends))
        live(place)
        assert set(content(place / "runs" / "tea")) == {"metrics.jsonl", "model.safetensors", "run.json"}
        steps = [json.loads(line)["step"] for line in (place / "runs/tea/metrics.jsonl").read_text().splitlines()]
        assert steps == [1, 2, 3]
    assert stride * len(statuses) > 80  # the operations were seen
    assert set(statuses) <= ({-signal.SIGKILL, DONE} if ends is kill else {0, 3, DONE})


@STRIDES
@ENDS
def test_a_run_that_replaces_another_loses_none_of_the_two(
    tmp_path: Path, ends: Callable[[], None], stride: int
) -> None:
    """Until its first step the old run is whole; after it the new one goes on."""
    statuses: list[int] = []
    whole: list[bool] = []
    while DONE not in statuses:
        place = tmp_path / str(len(statuses))
        place.mkdir()
        out, before = finished(place), content(place / "runs" / "tea")
        statuses.append(life(place, OTHER, 1 + stride * len(statuses), ends))
        aside = out / "checkpoints" / "replaced"
        whole.append(aside.exists() or (out / "run.json").is_file() and seed_of(out) == 0)
        if whole[-1]:
            assert start(place).finished and content(out) == before
        live(place, OTHER)
        assert seed_of(out) == 1 and not (out / "checkpoints").exists()
    assert any(whole) and not whole[-1]
    assert ends is full or whole == sorted(whole, reverse=True)


def seed_of(out: Path) -> int:
    return json.loads((out / "run.json").read_text())["config"]["seed"]


def left(place: Path, *names: str, **texts: bytes) -> Path:
    out = place / "runs" / "tea"
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    for name, text in texts.items():
        (out / name.replace("_", ".")).parent.mkdir(parents=True, exist_ok=True)
        (out / name.replace("_", ".")).write_bytes(text)
    return out


def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "record", [b"", b"\0" * 512, b" \n", b"{", b'{\n  "stage": "te', b'{"stage": "tea", "fingerprint": "a"}']
)
def test_half_a_record_alone_is_no_obstacle(tmp_path: Path, record: bytes) -> None:
    left(tmp_path, f"checkpoints/.fingerprint.{gone()}.tmp", "checkpoints/lock", run_json=record)
    live(tmp_path)
    assert start(tmp_path).finished


@pytest.mark.parametrize("overwrite", [False, True])
def test_half_a_record_beside_a_model_is_said(tmp_path: Path, overwrite: bool) -> None:
    """Whose model it is cannot be known, so nothing is replaced."""
    out = left(tmp_path, model_safetensors=b"weights", run_json=b"")
    with pytest.raises(InputError, match=r"its run.json is damaged, so it is not known .*; restore it"):
        start(tmp_path, replace(TEA, overwrite=overwrite))
    assert content(out) == {"model.safetensors": b"weights", "run.json": b""}


def test_a_file_that_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        name = f".notes.txt.{other.pid}.tmp"
        out = left(tmp_path, name, f".notes.txt.{gone()}.tmp")
        with pytest.raises(InputError, match="holds no run"):
            start(tmp_path)
        assert (out / name).exists()
        other.kill()


def test_temporary_files_of_killed_processes_are_swept(tmp_path: Path) -> None:
    out, dead = finished(tmp_path), gone()
    old = [f".model.safetensors.{dead}.tmp", f"value/.config.json.{dead}.tmp", f"snapshots/.00001.{dead}.tmp/x"]
    left(tmp_path, *old, "mine.tmp", ".notes.tmp", f"x.{dead}.tmp")
    live(tmp_path, OTHER)
    assert not [name for name in content(out) if f".{dead}.tmp" in name]


# ---- the second process


SECOND = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from test_first_write import live
sleep = time.sleep
time.sleep = lambda seconds: (print("waits", flush=True), sleep(seconds))
live(Path({place!r}))
"""


def test_two_same_commands_at_once_train_once(tmp_path: Path) -> None:
    """The second waits for the lock. What it had read before is old: the run has finished meanwhile."""
    tea = start(tmp_path)
    code = SECOND.format(path=[str(Path(__file__).parent), *sys.path], place=str(tmp_path))
    second = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    assert second.stdout and second.stdout.readline() == "waits\n"
    (tea.out / "model.safetensors").write_bytes(b"the first one's")
    tea.log(1, warmth=1.0)
    tea.finish({"cups": 2})
    tea.folder.close(failed=False)
    before = content(tea.out)
    assert "already finished" in second.communicate()[1] and second.returncode == 0
    assert content(tea.out) == before


def test_another_run_that_finished_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tea, waited = start(tmp_path), run_folder.RunFolder.wait

    def wait(self: run_folder.RunFolder) -> None:
        tea.log(1, warmth=1.0)
        tea.finish({"cups": 2})
        tea.folder.close(failed=False)
        waited(self)

    monkeypatch.setattr(run_folder.RunFolder, "wait", wait)
    with pytest.raises(InputError, match="another run is here"):
        start(tmp_path, replace(TEA, seed=3))
    assert set(content(tea.out)) == {"metrics.jsonl", "run.json"}


# ---- what a finished run has lost


def test_weights_that_are_gone_or_cut_are_said(tmp_path: Path) -> None:
    out = finished(tmp_path)
    weights = out / "model.safetensors"
    weights.write_bytes(b"wei")
    with pytest.raises(InputError, match=r"model.safetensors has 3 bytes, 7 when the run ended; restore the file, or"):
        start(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match="finished on .* UTC, but model.safetensors is missing"):
        start(tmp_path)
    assert set(content(out)) == {"metrics.jsonl", "run.json", "value", "value/model.safetensors"}
    again = start(tmp_path, replace(TEA, overwrite=True))
    assert not again.finished
    again.folder.close(failed=True)
    assert (out / "run.json").is_file()  # refused before its first step, it is as it was
    live(tmp_path, replace(TEA, overwrite=True))
    assert start(tmp_path).finished
