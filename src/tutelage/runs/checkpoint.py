"""Checkpoints on disk: one folder per step, either complete or absent.

    nested dicts, lists, tuples, numbers, strings and tensors  <->  checkpoints/<step>/{state.json, state.safetensors}

Tensors are stored in safetensors, everything else in JSON; nothing is pickled. A folder is written under a temporary
name, synced to disk and renamed. SHA256SUMS has the hash of each file, as `sha256sum` writes and checks it. Loading
takes the newest checkpoint whose files are as they were written, and reports each damaged one that it skips.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tutelage.atomic import atomic_folder
from tutelage.errors import InputError
from tutelage.model.parameters import trainable

KEPT = 2  # a full disk or a power cut may damage one; two are rarely damaged
TENSORS, TREE, SUMS = "state.safetensors", "state.json", "SHA256SUMS"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write folder/<step> atomically, then delete all checkpoints but the last two.

    Checkpoints of later steps are deleted, too: the run has fallen back past them, because they are damaged.
    """
    tensors: dict[str, Tensor] = {}
    with atomic_folder(folder / f"{step:08d}", replace=True) as temporary:
        tree = _flatten(state, "", tensors)
        save_file(tensors, temporary / TENSORS)
        (temporary / TREE).write_text(json.dumps(tree), encoding="utf-8")
        (temporary / SUMS).write_text(_sums(temporary), encoding="utf-8")
    steps = steps_in(folder)
    for old in [*(later for later in steps if later > step), *[one for one in steps if one <= step][:-KEPT]]:
        shutil.rmtree(folder / f"{old:08d}", ignore_errors=True)


def _sums(folder: Path) -> str:
    lines = []
    for name in (TENSORS, TREE):
        with open(folder / name, "rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def steps_in(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, in ascending order."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if re.fullmatch("[0-9]{8,}", path.name))


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """The newest undamaged state, and a message for each damaged checkpoint skipped; None without any checkpoint.

    Raises InputError if checkpoints exist but all are damaged.
    """
    damaged: list[str] = []
    for step in reversed(steps_in(folder)):
        place = folder / f"{step:08d}"
        try:
            return _read(place), damaged
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            damaged.append(f"{place}: unreadable ({error}); falling back to the previous checkpoint")
    if damaged:
        raise InputError(f"{folder}: no checkpoint can be read; delete this folder to start the stage again")
    return None


def _read(place: Path) -> dict[str, Any]:
    """The state in one folder. Raises one of several errors if it is damaged; an earlier version wrote no hashes."""
    sums = place / SUMS
    if sums.is_file() and sums.read_text(encoding="utf-8") != _sums(place):
        raise ValueError(f"its files do not have the hashes in {SUMS}")
    state = _unflatten(json.loads((place / TREE).read_text(encoding="utf-8")), load_file(place / TENSORS))
    if not isinstance(state, dict):
        raise ValueError(f"{TREE} holds no state")
    return state


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


def _unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        raise ValueError(f"{TREE} holds no state")
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
