"""Checkpoints: states are restored exactly, damaged folders are skipped, and resuming changes no bit (G8)."""

import json
import os
import pickletools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tutelage import atomic
from tutelage.errors import InputError
from tutelage.learning.optim import Muon, adamw
from tutelage.runs import checkpoint
from tutelage.runs.checkpoint import load_checkpoint, load_training_state, save_checkpoint, steps_in, training_state

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just("a tensor")
KEYS = st.text() | st.integers()
STATE = ["state.json", "state.safetensors"]
NESTED = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner), max_leaves=12
)


def with_tensors(value: Any, made: list[Tensor]) -> Any:
    """Replace each "a tensor" by a distinct tensor."""
    if value == "a tensor":
        made.append(torch.full((2,), float(len(made))))
        return made[-1]
    if isinstance(value, dict):
        return {k: with_tensors(v, made) for k, v in value.items()}
    return type(value)(with_tensors(v, made) for v in value) if isinstance(value, list | tuple) else value


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


@given(state=st.dictionaries(KEYS, NESTED, max_size=4))
def test_any_state_comes_back(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    state = with_tensors(state, [])
    save_checkpoint(folder, 7, state)
    loaded = load_checkpoint(folder)
    assert loaded is not None and same(loaded[0], state) and loaded[1] == []


def test_names_that_look_like_paths_do_not_collide(tmp_path: Path) -> None:
    state = {
        "a": {"b": torch.tensor([1.0])},
        "a/b": torch.tensor([2.0]),
        0: torch.tensor([3.0]),
        "0": torch.tensor([4.0]),
    }
    save_checkpoint(tmp_path, 1, state)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and same(loaded[0], state)


def test_every_kind_of_tensor_comes_back(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {
        "types": [
            torch.tensor([1, 2]).to(t) for t in (torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
        ],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "transposed": whole.T,
        "shares storage": [whole, whole[1:]],
        "generator": torch.Generator().manual_seed(5).get_state(),
    }
    save_checkpoint(tmp_path, 1, state)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and same(loaded[0], state)


def test_the_last_two_are_kept_and_the_newest_wins(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for step in (9, 10, 11, 100):
        save_checkpoint(tmp_path, step, {"step": step})
    assert steps_in(tmp_path) == [11, 100]
    assert load_checkpoint(tmp_path) == ({"step": 100}, [])
    save_checkpoint(tmp_path, 100, {"step": "again"})
    assert load_checkpoint(tmp_path) == ({"step": "again"}, [])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def line_about_damage(folder: Path, name: str, damage: Any) -> str:
    """What is said of a damaged newest checkpoint, after the one before has been loaded."""
    for step in (10, 20):
        save_checkpoint(folder, step, {"step": step, "weights": torch.full((50,), float(step))})
    damage(folder / "00000020" / name)
    state, (line,) = load_checkpoint(folder) or ({}, [])
    assert state["step"] == 10 and torch.equal(state["weights"], torch.full((50,), 10.0))
    return line


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("damage", [truncate, lambda path: path.unlink(), lambda path: path.write_bytes(bytes(100))])
def test_a_damaged_newest_falls_back_and_says_so(tmp_path: Path, name: str, damage: Any) -> None:
    assert "00000020" in line_about_damage(tmp_path, name, damage)
    damage(tmp_path / "00000010" / name)
    with pytest.raises(InputError, match="no checkpoint can be read"):
        load_checkpoint(tmp_path)


def flip(path: Path) -> None:
    """Another value in the last byte of a number: still JSON, still safetensors."""
    content = bytearray(path.read_bytes())
    at = max(content.rfind(b"0"), content.rfind(b"1"), len(content) - 2 if path.suffix == ".safetensors" else 0)
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[(name, flip) for name in STATE],
        *[
            ("state.json", lambda path, text=text: path.write_text(text))
            for text in ("[]", "null", "3", '{"items": []}')
        ],
        ("SHA256SUMS", truncate),
        ("SHA256SUMS", lambda path: path.write_bytes(b"\xff")),
    ],
)
def test_damage_that_can_be_read_is_damage(tmp_path: Path, name: str, damage: Any) -> None:
    line = line_about_damage(tmp_path, name, damage)
    assert "00000020: unreadable" in line and "falling back" in line


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", '"x"', '{"items": 3}', '{"items": [1]}', '{"value": 1}', "{}", "[" * 10**5]
)
def test_an_earlier_version_wrote_no_hashes(tmp_path: Path, text: str) -> None:
    """Its checkpoints are read; JSON of another shape is damage there, too."""
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step})
        (tmp_path / f"{step:08d}" / "SHA256SUMS").unlink()
    assert load_checkpoint(tmp_path) == ({"step": 2}, [])
    (tmp_path / "00000002" / "state.json").write_text(text)
    state, lines = load_checkpoint(tmp_path) or ({}, [])
    assert state == {"step": 1} and len(lines) == 1


def test_sha256sum_agrees(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"weights": torch.ones(3)})
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "00000001")
    assert done.returncode == 0


def test_what_lies_behind_the_newest_is_deleted(tmp_path: Path) -> None:
    """After falling back past a damaged checkpoint, the two that are kept are sound."""
    for step in (1, 2, 30):
        save_checkpoint(tmp_path, step, {"step": step})
    truncate(tmp_path / "00000030" / "state.json")
    for step in (3, 4):
        save_checkpoint(tmp_path, step, {"step": step})
    (tmp_path / "0000004²").mkdir()  # a digit for Python's isdigit, and no step
    assert steps_in(tmp_path) == [3, 4]


def test_a_full_disk_costs_nothing_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for place, name in ((checkpoint, "save_file"), (atomic, "sync_file"), (atomic, "sync_folder")):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(place, name, full)
            save_checkpoint(tmp_path, 2, {"step": 2, "weights": torch.ones(10)})
        assert os.listdir(tmp_path) == ["00000001"]
    assert load_checkpoint(tmp_path) == ({"step": 1}, [])


def test_what_a_killed_save_left_behind_is_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    (tmp_path / ".00000002.tmp").mkdir()
    (tmp_path / ".00000002.tmp" / "state.json").write_text("{")
    (tmp_path / "fingerprint").write_text("abc")
    assert load_checkpoint(tmp_path) == ({"step": 1}, [])
    save_checkpoint(tmp_path, 2, {"step": 2})
    assert load_checkpoint(tmp_path) == ({"step": 2}, [])


def test_nothing_is_pickled(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"weights": torch.ones(3)})
    assert sorted(p.name for p in (tmp_path / "00000001").iterdir()) == ["SHA256SUMS", *STATE]
    json.loads((tmp_path / "00000001" / "state.json").read_text())
    with pytest.raises(ValueError):
        list(pickletools.genops((tmp_path / "00000001" / "state.safetensors").read_bytes()))


def trained(model: nn.Module, optimizers: list[torch.optim.Optimizer], generator: torch.Generator, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(4, 6, generator=generator)
        F.mse_loss(model(x), x.square()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def fresh() -> tuple[nn.Module, list[torch.optim.Optimizer], torch.Generator]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [(n, p) for n, p in model.named_parameters() if p.ndim == 1]
    return model, [Muon(matrices, lr=0.02), adamw(gains, lr=0.01, weight_decay=0.1)], torch.Generator().manual_seed(3)


def test_resuming_equals_not_stopping(tmp_path: Path) -> None:
    """G8: 10 steps equal 5 steps, a checkpoint on disk and 5 more steps with new objects, bit for bit."""
    straight, optimizers, generator = fresh()
    trained(straight, optimizers, generator, 10)

    first, optimizers, generator = fresh()
    trained(first, optimizers, generator, 5)
    save_checkpoint(tmp_path, 5, training_state(first, optimizers) | {"data": generator.get_state()})
    second, optimizers, generator = fresh()
    state, _ = load_checkpoint(tmp_path) or ({}, [])
    load_training_state(state, second, optimizers)
    generator.set_state(state["data"])
    trained(second, optimizers, generator, 5)
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
