"""Files of a model: safetensors, whole or in shards, and JSON. What cannot be read is refused with a one-line error."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.atomic import atomic_path, atomic_write
from tutelage.errors import InputError
from tutelage.json_file import read_object
from tutelage.kinds import TEXT, check_fields, is_file_name, mapped
from tutelage.runs.device import release_memory


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write tensors atomically; several may be views of one."""
    with atomic_path(path) as temporary:
        # Clones, because several tensors may be views of one, and safetensors refuses shared storage.
        clones = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
        save_file(clones, temporary, {"format": "pt"})


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json lists."""
    release_memory()  # because the weights exist twice while they are copied into the model
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return read_safetensors(single)
    listing = read_object(index)
    check_fields(listing, {"weight_map": mapped(TEXT)}, str(index))
    shards = listing.get("weight_map", {})
    if not all(is_file_name(name) for name in shards.values()):
        raise InputError(f"{index}: a shard lies outside the folder; copy the model again")
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        weights |= read_safetensors(folder / shard)
    if weights.keys() != shards.keys():
        raise InputError(f"{index}: lists {len(shards)} tensors, its files hold {len(weights)}; copy the model again")
    return weights


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises InputError if it is missing or unreadable, or only a pickle is there."""
    if not path.is_file():
        pickles = sorted(p.name for p in path.parent.glob("*.bin")) + sorted(p.name for p in path.parent.glob("*.pt"))
        if pickles:
            raise InputError(
                f"{path.parent}: holds {pickles[0]}, a pickle, which could run any code; convert it to safetensors"
            )
        raise InputError(f"{path}: missing; give a finished run, or run the stage that makes it again")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); it may be cut short; copy it or make it again") from None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object atomically."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
