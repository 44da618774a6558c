"""Checkpoints on disk: one folder per step, either complete or absent.

    nested dicts, lists, tuples, numbers, strings and tensors  <->  checkpoints/<step>/{state.json, state.safetensors}

Tensors are stored in safetensors, everything else in JSON; nothing is pickled. A folder is written under a temporary
name, synced to disk and renamed. Loading takes the newest readable checkpoint and reports each unreadable one it skips.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tutelage.atomic import sync_file, sync_folder
from tutelage.errors import InputError
from tutelage.model.parameters import trainable

KEPT = 2  # a full disk or a power cut may damage one; two are rarely damaged


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write folder/<step> atomically, then delete all checkpoints but the last two."""
    temporary, final = folder / f".{step:08d}.tmp", folder / f"{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    try:
        tree = _flatten(state, "", tensors)
        save_file(tensors, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(tree), encoding="utf-8")
        for name in ("state.safetensors", "state.json"):
            sync_file(temporary / name)
        sync_folder(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    for old in steps_in(folder)[:-KEPT]:
        shutil.rmtree(folder / f"{old:08d}", ignore_errors=True)


def steps_in(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, in ascending order."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The newest readable state, and a message for each damaged checkpoint skipped; None without any checkpoint.

    Raises InputError if checkpoints exist but none can be read.
    """
    damaged: list[str] = []
    for step in reversed(steps_in(folder)):
        try:
            tensors = load_file(folder / f"{step:08d}" / "state.safetensors")
            tree = json.loads((folder / f"{step:08d}" / "state.json").read_text(encoding="utf-8"))
            return _unflatten(tree, tensors), damaged
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            damaged.append(f"{folder / f'{step:08d}'}: unreadable ({error}); falling back to the previous checkpoint")
    if damaged:
        raise InputError(f"{folder}: no checkpoint can be read; delete this folder to start the stage again")
    return None


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # The number keeps names unique when different keys give the same path, such as "a/b" and "b" in a dict "a".
        name = f"{len(tensors)}{name}"
        # A clone, because safetensors refuses tensors that share storage.
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[key, _flatten(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    return {"value": value}


def _unflatten(tree: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: _unflatten(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_unflatten(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    return content


def training_state(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """What a model and its optimizers need to resume exactly. Frozen weights are left out: they are on disk already."""
    return {"model": dict(trainable(model)), "optimizers": [o.state_dict() for o in optimizers]}


def load_training_state(state: dict[str, Any], model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Restore what `training_state` returned. Raises InputError if the model trains other weights."""
    weights = trainable(model)
    if weights.keys() != state["model"].keys():
        raise InputError("checkpoint: holds other weights than this model trains; choose another --out")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state["model"][name])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
