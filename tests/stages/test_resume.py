"""A stage that is stopped and resumed ends with the same bytes as a run that was never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from world import PRETRAIN, RANK, REWARD, SFT, World, interrupted, metrics, results, rl_inputs, same_files

from tutelage.stages import rank as rank_stage
from tutelage.stages.ppo import PPOConfig, ppo
from tutelage.stages.pretrain import pretrain
from tutelage.stages.rank import rank
from tutelage.stages.reward import reward
from tutelage.stages.sft import sft

PPO = PPOConfig(
    iterations=4, batch=8, minibatch=4, epochs=2, max_tokens=24, max_prompt=32, ptx_windows=2, ptx_calibration=2,
    kl_budget=1e9, dtype="fp32",
)  # fmt: skip


def stages(world: World) -> dict[str, tuple[Any, int, list[str]]]:
    """Stage -> (call on an --out, the step in the middle, files that must be the same)."""
    weights = ["model.safetensors", "config.json"]
    return {
        "pretrain": (
            lambda out: pretrain(world.tokenizer, (world.corpus,), out, (world.heldout,), PRETRAIN), 20, weights,
        ),
        "sft": (lambda out: sft(world.base, (world.demos,), out, (world.demos_valid,), SFT), 9, weights),
        "reward": (
            lambda out: reward(world.sft, (world.comparisons,), out, (world.demos,), world.panel, REWARD), 2, weights,
        ),
        "ppo-ptx": (
            lambda out: ppo(rl_inputs(world, out), PPO), 2,
            [*weights, "value/model.safetensors", "value/config.json"],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo-ptx"])
def test_a_resumed_stage_ends_like_an_uninterrupted_one(
    stage: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, step, files = stages(world)[stage]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    call(whole)
    interrupted(lambda: call(parts), monkeypatch, step)
    assert not (parts / "run.json").exists() and not (parts / "model.safetensors").exists()
    assert len(metrics(parts)) == step
    call(parts)
    same_files(whole, parts, files)
    assert metrics(parts) == metrics(whole)
    assert len(metrics(whole)) > step
    assert results(parts) == results(whole)
    assert not (parts / "checkpoints").exists()


@pytest.mark.parametrize(("stage", "last"), [("pretrain", 40), ("sft", 24)])
def test_stopped_at_its_very_last_step_it_still_knows_its_figures(
    stage: str, last: int, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to train then, so the held-out figures can only come out of the checkpoint."""
    call, _, files = stages(world)[stage]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    call(whole)
    assert len(metrics(whole)) == last
    interrupted(lambda: call(parts), monkeypatch, last)
    call(parts)
    same_files(whole, parts, files)
    assert results(parts) == results(whole) and any(name.startswith("heldout") for name in results(parts))


@pytest.mark.parametrize(("stage", "figure"), [("pretrain", "held-out bits per byte"), ("sft", "held-out loss")])
def test_a_resumed_stage_still_knows_where_it_started(
    stage: str,
    figure: str,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The ending names the held-out figure before the first step and after the last, the latter as in run.json."""
    call, step, _ = stages(world)[stage]
    call(tmp_path / "whole")
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith(f"  {figure} "))
    start, end = map(float, line.removeprefix(f"  {figure} ").split(" -> "))
    (value,) = (value for name, value in results(tmp_path / "whole").items() if name.startswith("heldout"))
    assert start > end == pytest.approx(value, rel=1e-3)
    interrupted(lambda: call(tmp_path / "parts"), monkeypatch, step)
    call(tmp_path / "parts")
    assert line in capsys.readouterr().err.splitlines()


def test_rank_resumes_after_the_prompts_it_has_answered(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_stage, "BATCH", 4)
    answered: list[int] = []
    original = rank_stage.generate
    monkeypatch.setattr(rank_stage, "generate", lambda *a, **k: answered.append(len(a[1])) or original(*a, **k))

    def call(out: Path) -> None:
        rank(out, world.sft, (world.prompts,), world.panel, config=RANK)

    call(tmp_path / "whole.jsonl")
    assert sum(answered) == 16
    answered.clear()
    interrupted(lambda: call(tmp_path / "parts.jsonl"), monkeypatch, 8)
    assert not (tmp_path / "parts.jsonl").exists()
    call(tmp_path / "parts.jsonl")
    assert sum(answered) == 16  # none twice
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "parts.jsonl").read_bytes()


def ppo_command(world: World, out: Path) -> list[str]:
    flags = "--iterations 30 --batch 8 --minibatch 4 --max-tokens 24 --max-prompt 32 --ptx-windows 2 --dtype fp32"
    return [
        sys.executable, "-m", "tutelage", "ppo", "--policy", str(world.sft), "--reward", str(world.reward),
        "--prompts", str(world.prompts), "--corpus", str(world.corpus), "--out", str(out), *flags.split(),
        "--kl-budget", "1e9", "--checkpoint-seconds", "0",
    ]  # fmt: skip


def wait_for_a_checkpoint(run: Path, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 60
    while not list((run / "checkpoints").glob("0*[2-9]")):
        assert process.poll() is None, "ended before it could be stopped"
        assert time.monotonic() < deadline, "never saved"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_ppo_survives_a_real_signal(number: signal.Signals, world: World, tmp_path: Path) -> None:
    """kill -9 loses at most the steps since the last checkpoint; Ctrl-C loses none and says how to go on."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = PPOConfig(
        iterations=30, batch=8, minibatch=4, max_tokens=24, max_prompt=32, ptx_windows=2, kl_budget=1e9, dtype="fp32"
    )
    ppo(rl_inputs(world, whole), config)
    process = subprocess.Popen(ppo_command(world, parts), stderr=subprocess.PIPE, text=True)
    wait_for_a_checkpoint(parts, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "run the same command again to resume" in said
    assert not (parts / "run.json").exists()
    again = subprocess.run(ppo_command(world, parts), capture_output=True, text=True, env=os.environ)
    assert again.returncode == 0, again.stderr
    assert "resuming from step" in again.stderr
    same_files(whole, parts, ["model.safetensors", "value/model.safetensors"])
    assert metrics(parts) == metrics(whole)
