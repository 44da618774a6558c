"""How long SFT trains: epochs or tokens, its defaults by size, what it warns of, and what it says at the end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from world import SFT, World, exchanges, metrics, results, write_demos

from tutelage import cli
from tutelage.data.epochs import budget_warnings, default_epochs, rows_of_epochs
from tutelage.data.packing import Example
from tutelage.errors import InputError
from tutelage.stages.sft import SFTConfig, sft

EPOCHS = replace(SFT, tokens=None)
SINGLES = [Example([i] * 10, [True] * 10) for i in range(7)]  # each fills a row of ten alone


def seen(epochs: float) -> list[int]:
    rows = rows_of_epochs(SINGLES, epochs, 10, torch.Generator().manual_seed(0))
    return [row[0].ids[0] for row in rows]


@pytest.mark.parametrize(("epochs", "count"), [(1, 7), (2, 14), (0.5, 4), (1.5, 11), (2.9, 20), (0.01, 1)])
def test_rows_of_epochs(epochs: float, count: int) -> None:
    """By hand: seven rows an epoch, rounded where it ends within one; every full epoch holds each example once."""
    rows = seen(epochs)
    assert len(rows) == count
    for start in range(0, int(epochs) * 7, 7):
        assert sorted(rows[start : start + 7]) == list(range(7))
    assert epochs < 2 or rows[:7] != rows[7:14]


@pytest.mark.parametrize(
    ("held", "epochs"), [(1_000, 16), (31_000, 16), (50_000, 10), (240_000, 2), (500_000, 1), (9_000_000, 1)]
)
def test_the_default_goes_by_size(held: int, epochs: int) -> None:
    assert default_epochs(held) == epochs


def test_warnings() -> None:
    assert budget_warnings(100_000, 5, 90, chosen=False) == []
    assert "500 epochs" in budget_warnings(1_000, 16, 4, chosen=False)[0]
    assert budget_warnings(1_000, 16, 4, chosen=True) == []
    assert "by heart" in budget_warnings(1_000, 400, 99, chosen=True)[0]
    assert "a single step" in budget_warnings(100_000, 1, 1, chosen=True)[0]


def test_epochs_and_tokens_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main("sft --base x --demos x --out x --epochs 2 --tokens 1000".split())
    assert "--epochs 2 --tokens 1000: both say how long to train" in capsys.readouterr().err
    with pytest.raises(InputError, match="--epochs 0: must be above 0"):
        SFTConfig(epochs=0.0)


def test_a_run_of_epochs(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half an epoch more is half the steps more, and the end compares base and tuned model on held-out data."""
    steps = {}
    for epochs in (2.0, 3.0):
        out = tmp_path / f"{epochs}"
        sft(world.base, (world.demos,), out, (world.demos_valid,), replace(EPOCHS, epochs=epochs))
        assert results(out)["epochs"] == epochs
        steps[epochs] = len(metrics(out))
    assert steps[3.0] == pytest.approx(1.5 * steps[2.0], abs=1)
    told = capsys.readouterr().err
    base, tuned = results(out)["base_loss"], results(out)["heldout_loss"]
    assert f"held-out loss {base:.4g} -> {tuned:.4g}" in told
    assert "3 epochs in" in told


def test_without_held_out_data_the_same_rows_are_compared(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base's loss on them is what a run reports whose held-out data they are."""
    demos = write_demos(tmp_path / "d.jsonl", exchanges(6, 3))
    sft(world.base, (demos,), tmp_path / "out", config=EPOCHS)
    told, found = capsys.readouterr().err, results(tmp_path / "out")
    assert "would be" in told and "epochs of these demonstrations" in told  # six short ones
    assert found["epochs"] == 16 and found["training_loss"] < found["base_loss"]
    assert f"of the training data {found['base_loss']:.4g} -> {found['training_loss']:.4g} (base and tuned; " in told
    sft(world.base, (demos,), tmp_path / "held", (demos,), replace(EPOCHS, epochs=1.0))
    assert results(tmp_path / "held")["base_loss"] == pytest.approx(found["base_loss"], rel=0.3)


def test_a_single_step_is_warned_of(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demos = write_demos(tmp_path / "d.jsonl", exchanges(2, 3))
    sft(world.base, (demos,), tmp_path / "out", config=replace(EPOCHS, epochs=1.0))
    told = capsys.readouterr().err
    assert "the whole training is a single step" in told and "only one training step was taken" in told
    assert "2 conversations, 1 epoch in 1 step" in told
    assert json.loads((tmp_path / "out" / "run.json").read_text())["results"]["steps"] == 1
