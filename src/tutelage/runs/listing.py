"""The models inside a folder of runs, for somebody who names the folder instead of one of them.

runs/demo -> runs/demo/base, runs/demo/sft, ...   -> what to type instead
"""

import json
from pathlib import Path
from typing import Any

from tutelage.runs.ending import command

SHOWN = 8  # runs that an error message names


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


def chat_commands(folder: Path) -> list[str]:
    """For each language model in the folder, the command that chats with it and what made it. Empty for a model."""
    found = {place: record(place / "run.json") for place in models_in(folder) if not scores(place)}
    commands = {place: command("chat", place) for place in found}
    width = max(map(len, commands.values()), default=0)
    return [f"{commands[place]:{width}}  {about(made)}".rstrip() for place, made in found.items()]


def scores(place: Path) -> bool:
    """Whether the model there is a reward model."""
    config = record(place / "config.json")
    return "reward_mean" in config or "SequenceClassification" in str(config.get("architectures"))


def about(made: dict[str, Any]) -> str:
    """What run.json says in a few words: sft, finished 2026-08-01 12:30 UTC."""
    when = str(made.get("finished", ""))[:16].replace("T", " ")
    return f"{made['stage']}, finished {when} UTC" if made.get("stage") and when else ""


def record(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
