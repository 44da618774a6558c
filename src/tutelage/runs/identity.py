"""What a run is made from, and when two runs are the same one.

stage, config, inputs -> hashes -> fingerprint;  a finished run, other settings -> what differs, in words
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import InputError


@dataclass(frozen=True)
class Named:
    """An input that is no file or run: by which name it was given, and a text that is another if it is another."""

    name: str
    text: str


Given = Path | Named
Inputs = Mapping[str, Given | Sequence[Given] | None]
NO_NUMBER = ("overwrite", "checkpoint_seconds", "reward_key_file")  # settings that change no number


def plain_config(config: Any) -> dict[str, Any]:
    """A config as JSON has it, without what changes no number."""
    plain = json.loads(json.dumps(asdict(config), default=str))
    return {name: value for name, value in plain.items() if name not in NO_NUMBER}


def hash_inputs(inputs: Inputs) -> dict[str, dict[str, str]]:
    """{name: path and sha256}; several files under one name are numbered; None, an option not given, is left out."""
    named: dict[str, Given] = {}
    for name, given in inputs.items():
        if isinstance(given, Given):
            named[name] = given
        elif given is not None:
            named |= {f"{name}-{i}": path for i, path in enumerate(given)}
    return {name: _recorded(given) for name, given in named.items()}


def _recorded(given: Given) -> dict[str, str]:
    if isinstance(given, Named):
        return {"path": given.name, "sha256": hashlib.sha256(given.text.encode()).hexdigest()}
    return {"path": str(given), "sha256": hash_input(given)}


def fingerprint(stage: str, config: Any, inputs: Mapping[str, Mapping[str, str]]) -> str:
    """The identity of a run: equal exactly when stage, settings and the content of every input are."""
    hashes = {name: value["sha256"] for name, value in inputs.items()}
    identity = {"stage": stage, "config": plain_config(config), "inputs": hashes}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def hash_input(path: Path) -> str:
    """sha256 of a file, or of a run directory's own content (weights, tokenizer, data), not of its logs.

    A run without a model of its own is its adapter, which names its base by hash; one that others made names it by
    path, and the base's content counts as its own.
    """
    if path.is_file():
        return _digest(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; check the path")
    refuse_ring(path)
    inside = [*path.iterdir(), *([] if (path / "config.json").is_file() else path.glob("adapter/*"))]
    files = sorted(p for p in inside if p.suffix in (".json", ".jsonl", ".safetensors", ".jinja"))
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
    """Raises InputError where adapters name each other as base, so that none of them ever gets to a model."""
    met, base = {folder.resolve()}, _base_named_by_path(folder)
    while base:
        if base.resolve() in met:
            raise InputError(
                f"{folder}: its base leads back to {base}, so adapters are all there is; name a model as the base in "
                "one's adapter_config.json"
            )
        met.add(base.resolve())
        base = _base_named_by_path(base)


def find_adapter(folder: Path) -> Path | None:
    """Where the adapter lies in a folder that has no weights of its own."""
    if (folder / "config.json").is_file():
        return None
    return next((place for place in (folder, folder / "adapter") if (place / "adapter_config.json").is_file()), None)


def _base_named_by_path(path: Path) -> Path | None:
    """The base of an adapter as PEFT writes it, where it lies on this disk."""
    folder = find_adapter(path)
    if not folder or (folder / "base.json").is_file():
        return None
    config = folder / "adapter_config.json"
    with contextlib.suppress(ValueError, TypeError, KeyError):  # what is wrong with it, loading it will say
        named = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
        for place in (folder / named, Path(named)):
            if place.exists() and place.resolve() not in (path.resolve(), folder.resolve()):
                return place
    return None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(found: dict[str, Any], stage: str, config: Any, inputs: Mapping[str, Any]) -> str:
    """In words: what a finished run was made with that is different now."""
    if found["stage"] != stage:
        return f"stage was {found['stage']}, is {stage}"
    now, then = plain_config(config), found["config"]
    changed = [f"{k} was {then.get(k)}, is {now.get(k)}" for k in now | then if now.get(k) != then.get(k)]
    old = found["inputs"]
    changed += [f"{k} has changed" for k in inputs if old.get(k, {}).get("sha256") != inputs[k]["sha256"]]
    changed += [f"{k} was given" for k in old if k not in inputs]
    return ", ".join(changed) or "the settings are the same but its record differs"
