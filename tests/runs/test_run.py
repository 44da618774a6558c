"""Runs: finished, refused, replaced, stopped by a signal, and resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.errors import InputError
from tutelage.runs import log, run, run_folder
from tutelage.runs.run import Interrupted, Run, RunConfig
from tutelage.stages.sft import SFTConfig


@dataclass(frozen=True, kw_only=True)
class TeaConfig(RunConfig):
    minutes: int = 3
    device: str = "cpu"
    dtype: str = "fp32"


TEA = TeaConfig()


@pytest.fixture
def leaves(tmp_path: Path) -> Path:
    path = tmp_path / "leaves.jsonl"
    path.write_text('{"kind": "green"}\n')
    return path


def start(tmp_path: Path, config: TeaConfig = TEA, stage: str = "tea") -> Run:
    return Run(tmp_path / "out", stage=stage, config=config, inputs={"leaves": tmp_path / "leaves.jsonl"})


def ended(process: Run) -> None:
    """Release the lock, as the end of the run's process would."""
    if process.folder.lock:
        process.folder.lock.close()


def finished(tmp_path: Path, config: TeaConfig = TEA) -> Path:
    with start(tmp_path, config) as tea:
        tea.finish({"cups": 2})
    ended(tea)
    return tmp_path / "out"


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_says_what_made_it(tmp_path: Path, leaves: Path) -> None:
    record = json.loads((finished(tmp_path) / "run.json").read_text())
    assert record["stage"] == "tea" and record["results"] == {"cups": 2}
    assert record["config"] == {"minutes": 3, "seed": 0, "device": "cpu", "dtype": "fp32"}
    expected = subprocess.run(["sha256sum", leaves], capture_output=True, text=True).stdout.split()[0]
    assert record["inputs"] == {"leaves": {"path": str(leaves), "sha256": expected}}
    assert record["device"]["kind"] == "cpu" and record["device"]["dtype"] == "float32"
    assert record["peak_memory_bytes"] > 2**20 and record["wall_seconds"] >= 0
    assert not (tmp_path / "out" / "checkpoints").exists()  # nobody goes on from a finished run


def test_the_same_run_is_finished_and_untouched(
    tmp_path: Path, leaves: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished(tmp_path) / "run.json").read_bytes()
    capsys.readouterr()
    assert start(tmp_path).finished
    (told,) = capsys.readouterr().err.splitlines()
    finished_at = json.loads(before)["finished"][:16].replace("T", " ")
    assert f"already finished on {finished_at} UTC" in told and "nothing to do" in told and "another --out" in told
    assert start(tmp_path, replace(TEA, overwrite=True)).finished  # nothing differs, so nothing is made again
    assert (tmp_path / "out" / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("config", "minutes was 3, is 5"),
        ("seed", "seed was 0, is 1"),
        ("input", "leaves has changed"),
        ("stage", "stage was tea, is coffee"),
    ],
)
def test_another_run_is_refused_with_the_reason_or_replaced(
    tmp_path: Path, leaves: Path, change: str, reason: str
) -> None:
    out = finished(tmp_path)
    config, stage = TEA, "tea"
    if change == "input":
        leaves.write_text('{"kind": "black"}\n')
    elif change == "stage":
        stage = "coffee"
    else:
        config = replace(TEA, minutes=5) if change == "config" else replace(TEA, seed=1)
    with pytest.raises(InputError, match=reason):
        start(tmp_path, config, stage)
    assert (out / "run.json").exists()
    again = start(tmp_path, replace(config, overwrite=True), stage)
    assert not again.finished and not (out / "run.json").exists()
    ended(again)


def stopped(tmp_path: Path, config: TeaConfig = TEA) -> None:
    """A run that was interrupted after one step."""
    tea = start(tmp_path, config)
    tea.stop_requested = True
    with pytest.raises(Interrupted):
        tea.checkpoint(1, dict)
    ended(tea)


def test_an_unfinished_run_with_other_settings_is_refused_too(tmp_path: Path, leaves: Path) -> None:
    stopped(tmp_path)
    with pytest.raises(InputError, match="another run is here"):
        start(tmp_path, replace(TEA, minutes=5))
    stopped(tmp_path, replace(TEA, minutes=5, overwrite=True))
    with pytest.raises(InputError, match="another run is here"):
        start(tmp_path)


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, leaves: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("three years of work")
    with pytest.raises(InputError, match="not empty and holds no run"):
        start(tmp_path)
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leaves.jsonl: no such file or folder"):
        start(tmp_path)
    (tmp_path / "leaves.jsonl").mkdir()
    with pytest.raises(InputError, match="holds no model, tokenizer or data"):
        start(tmp_path)


def test_an_input_folder_counts_by_content_not_by_its_logs(tmp_path: Path) -> None:
    folder = tmp_path / "leaves.jsonl"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    out = finished(tmp_path)
    (folder / "metrics.jsonl").write_text("{}")
    (folder / "run.json").write_text("{}")
    assert start(tmp_path).finished
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match="leaves has changed"):
        start(tmp_path)
    assert out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_at_the_next_step(tmp_path: Path, leaves: Path, number: int) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped at step 3 and saved"), start(tmp_path) as tea:
        for step in range(1, 10):
            tea.log(step, warmth=1 / step)
            if step == 3:
                os.kill(os.getpid(), number)
            tea.checkpoint(step, lambda: {"leaves": torch.full((2,), 7.0)})
    assert signal.getsignal(number) is handler
    ended(tea)
    with start(tmp_path) as again:
        assert not again.finished
        state = again.restore()
    assert state is not None and state["step"] == 3 and state["leaves"].tolist() == [7.0, 7.0]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert again.seconds > 0
    ended(again)


def test_a_second_interrupt_does_not_wait(tmp_path: Path, leaves: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, start(tmp_path) as tea:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.type is KeyboardInterrupt  # not Interrupted, which promises a checkpoint
    ended(tea)


def test_what_was_logged_after_the_checkpoint_is_forgotten(tmp_path: Path, leaves: Path) -> None:
    """The state after kill -9: the log has steps beyond the checkpoint, and its last line is cut short."""
    eager = replace(TEA, checkpoint_seconds=0.0)
    with start(tmp_path, eager) as tea:
        for step in range(1, 6):
            tea.log(step, warmth=0.123456789, cups=step)
            if step <= 3:
                tea.checkpoint(step, dict)
    ended(tea)
    metrics = tmp_path / "out" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-10])
    with start(tmp_path) as again:
        state = again.restore()
        assert state is not None and state["step"] == 3
        again.log(4, warmth=0.5, cups=4)
    ended(again)
    assert [(line["step"], line["cups"]) for line in lines(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert lines(tmp_path)[0]["warmth"] == 0.1234568


def test_without_a_checkpoint_the_log_starts_over(tmp_path: Path, leaves: Path) -> None:
    with start(tmp_path) as tea:
        tea.log(1, warmth=1.0)
    ended(tea)
    with start(tmp_path) as again:
        assert again.restore() is None
        assert lines(tmp_path) == []
    ended(again)


def test_a_full_disk_does_not_cost_the_log(tmp_path: Path, leaves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path) as tea:
        tea.log(1, warmth=1.0)

        def full(*_: Any, **__: Any) -> str:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(log.json, "dumps", full)
        with pytest.raises(OSError, match="No space"):
            tea.metrics.rewind(1)
    monkeypatch.undo()
    assert [line["step"] for line in lines(tmp_path)] == [1]
    assert not list((tmp_path / "out").glob("*.tmp")) and not list((tmp_path / "out").glob(".*.tmp"))


def test_a_full_disk_at_the_end_leaves_the_run_unfinished(
    tmp_path: Path, leaves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with start(tmp_path) as tea, monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        tea.finish({"cups": 2})
    ended(tea)
    assert not (tmp_path / "out" / "run.json").exists() and (tmp_path / "out" / "checkpoints").exists()
    assert not start(tmp_path).finished


def test_a_run_has_one_process_at_a_time(tmp_path: Path, leaves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tea = start(tmp_path)
    monkeypatch.setattr(run_folder, "LOCK_PATIENCE", 0.3)
    with pytest.raises(InputError, match="another process is working on this run"):
        start(tmp_path)
    ended(tea)


def test_a_run_waits_for_one_that_is_ending(tmp_path: Path, leaves: Path) -> None:
    """After kill -9 of a demo its stage lives until it next prints progress."""
    tea, begun = start(tmp_path), time.monotonic()
    ending = threading.Timer(0.5, lambda: ended(tea))
    ending.start()
    waited = start(tmp_path)
    assert time.monotonic() - begun >= 0.5 and tea.folder.lock.closed  # not before the other had let go
    assert not waited.finished and not waited.folder.lock.closed
    ended(waited)
    ending.join()


def test_a_run_that_refused_its_input_does_not_block_the_next(tmp_path: Path, leaves: Path) -> None:
    refused = start(tmp_path)  # no checkpoint: it failed before its first
    ended(refused)
    leaves.write_text("mint")
    mended = start(tmp_path)
    assert not mended.finished and mended.fingerprint != refused.fingerprint
    assert (tmp_path / "out" / "checkpoints" / "fingerprint").read_text() == mended.fingerprint
    assert mended.restore() is None
    ended(mended)


def test_a_record_that_is_not_ours_is_no_run(tmp_path: Path, leaves: Path) -> None:
    for foreign in (b'{"a": 1}', b"[]", b"\xff\xfe"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "run.json").write_bytes(foreign)
        with pytest.raises(InputError, match="holds no run"):
            start(tmp_path)


@pytest.mark.parametrize(("changes", "line"), [({"batch": 0}, "--batch 0: must be at least 1"),
                                               ({"seed": -1}, "--seed -1: must be at least 0"),
                                               ({"lr": float("nan")}, "--lr nan")])  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        SFTConfig(**changes)


def test_each_purpose_has_its_own_chance_in_every_process(tmp_path: Path, leaves: Path) -> None:
    tea = start(tmp_path)
    draws = {p: torch.rand(4, generator=tea.generator(p)).tolist() for p in ("weights", "order")}
    assert draws["weights"] != draws["order"]
    assert torch.rand(4, generator=tea.generator("order")).tolist() == draws["order"]
    code = "import hashlib; print(int(hashlib.sha256(b'0/order').hexdigest()[:16], 16) // 2)"
    elsewhere = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    assert run.seed_for(0, "order") == elsewhere < 2**63
    ended(tea)
