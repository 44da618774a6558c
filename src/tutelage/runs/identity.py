"""The identity of a run: what it was made from, and whether two runs are the same.

stage, config, inputs -> hashes -> fingerprint;  a finished run and new settings -> what differs, in words
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import InputError
from tutelage.json_file import read_object


@dataclass(frozen=True)
class NamedInput:
    """An input that is neither a file nor a run: its name, and a text that changes whenever the input changes."""

    name: str
    text: str


Input = Path | NamedInput
Inputs = Mapping[str, Input | Sequence[Input] | None]
SHOWN = 8  # runs that an error message names
IRRELEVANT = ("overwrite", "checkpoint_seconds", "reward_key_file")  # settings that affect no result


def plain_config(config: Any) -> dict[str, Any]:
    """A config as JSON values, without the settings that affect no result."""
    plain = json.loads(json.dumps(asdict(config), default=str))
    return {name: value for name, value in plain.items() if name not in IRRELEVANT}


def hash_inputs(inputs: Inputs) -> dict[str, dict[str, str]]:
    """{name: path and sha256}. Several inputs under one name are numbered; None, an option not given, is left out."""
    flat: dict[str, Input] = {}
    for name, value in inputs.items():
        if isinstance(value, Input):
            flat[name] = value
        elif value is not None:
            flat |= {f"{name}-{i}": item for i, item in enumerate(value)}
    return {name: _recorded(value) for name, value in flat.items()}


def _recorded(value: Input) -> dict[str, str]:
    if isinstance(value, NamedInput):
        return {"path": value.name, "sha256": hashlib.sha256(value.text.encode()).hexdigest()}
    return {"path": str(value), "sha256": hash_input(value)}


def fingerprint(stage: str, config: Any, inputs: Mapping[str, Mapping[str, str]]) -> str:
    """The identity of a run: equal for two runs exactly if their stage, settings and the content of all inputs are."""
    hashes = {name: value["sha256"] for name, value in inputs.items()}
    identity = {"stage": stage, "config": plain_config(config), "inputs": hashes}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def hash_input(path: Path) -> str:
    """sha256 of a file, or of a run directory's weights, tokenizer and data, without its logs.

    A run that holds only an adapter is hashed by the adapter's files, which include the hash of its base. An adapter
    made by PEFT names its base by path only, so the base's content is hashed with it. Raises InputError for a missing
    path or an empty directory.
    """
    if path.is_file():
        return _digest(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; check the path")
    if several := which_run(path):
        raise InputError(several)
    refuse_ring(path)
    entries = [*path.iterdir(), *([] if (path / "config.json").is_file() else path.glob("adapter/*"))]
    files = sorted(p for p in entries if p.suffix in (".json", ".jsonl", ".safetensors", ".jinja"))
    content = [p for p in files if p.name not in ("run.json", "metrics.jsonl", "report.json")]
    if not content:
        raise InputError(f"{path}: holds no model, tokenizer or data; point at a finished run")
    digest = hashlib.sha256()
    for p in content:
        digest.update(p.name.encode() + bytes.fromhex(_digest(p)))
    if base := _base_named_by_path(path):
        digest.update(hash_input(base).encode())
    return digest.hexdigest()


def refuse_ring(folder: Path) -> None:
    """Raises InputError if adapters name each other as their base in a circle, so that none leads to a model."""
    visited, base = {folder.resolve()}, _base_named_by_path(folder)
    while base:
        if base.resolve() in visited:
            raise InputError(
                f"{folder}: its base leads back to {base}, which is an adapter too; name a model as the base in one "
                "of their adapter_config.json files"
            )
        visited.add(base.resolve())
        base = _base_named_by_path(base)


def find_adapter(folder: Path) -> Path | None:
    """The folder with the adapter's files; None if this folder holds a full model or no adapter."""
    if (folder / "config.json").is_file():
        return None
    places = (folder, folder / "adapter")
    return next((place for place in places if (place / "adapter_config.json").is_file()), None)


def holds_model(place: Path) -> bool:
    """Whether the place is a model: a folder with its config, an adapter, or a GGUF file."""
    names = ("config.json", "adapter_config.json", "adapter/adapter_config.json")
    return place.suffix == ".gguf" if place.is_file() else any((place / name).is_file() for name in names)


def models_in(folder: Path) -> list[Path]:
    """The models directly inside, or else one folder below; none for a folder that holds a model or a tokenizer."""
    if not folder.is_dir() or holds_model(folder) or (folder / "tokenizer.json").is_file():
        return []
    for pattern in ("[!.]*", "[!.]*/[!.]*"):
        if found := [place for place in sorted(folder.glob(pattern)) if holds_model(place)]:
            return found
    return []


def which_run(folder: Path) -> str | None:
    """One line that names the runs in a folder of runs; None if it is not one."""
    if not (found := models_in(folder)):
        return None
    names = ", ".join(map(str, found[:SHOWN])) + (f" or {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    return f"{folder}: a folder of runs, not a run; give one of {names}"


def _base_named_by_path(path: Path) -> Path | None:
    """The base that a PEFT adapter names, if it is a path on this disk."""
    folder = find_adapter(path)
    if not folder or (folder / "base.json").is_file():
        return None
    config = folder / "adapter_config.json"
    with contextlib.suppress(InputError, TypeError, KeyError, OSError):  # loading the adapter reports a bad file
        named = read_object(config)["base_model_name_or_path"]
        for place in (folder / named, Path(named)):
            if place.exists() and place.resolve() not in (path.resolve(), folder.resolve()):
                return place
    return None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(record: dict[str, Any], stage: str, config: Any, inputs: Mapping[str, Any]) -> str:
    """Describe how the stage, settings and inputs of a finished run differ from the current ones."""
    if record["stage"] != stage:
        return f"stage was {record['stage']}, is {stage}"
    now, then = plain_config(config), record["config"]
    changed = [f"{k} was {then.get(k)}, is {now.get(k)}" for k in now | then if now.get(k) != then.get(k)]
    old = record["inputs"]
    changed += [f"{k} has changed" for k in inputs if old.get(k, {}).get("sha256") != inputs[k]["sha256"]]
    changed += [f"{k} was given" for k in old if k not in inputs]
    return ", ".join(changed) or "the settings and inputs are the same, but the recorded fingerprint differs"
