"""The models inside a folder of runs, for somebody who names the folder instead of one of them.

runs/demo -> runs/demo/base, runs/demo/sft, ...   -> what to type instead
"""

from pathlib import Path
from typing import Any

from tutelage.errors import InputError
from tutelage.json_file import read_object
from tutelage.runs.ending import command
from tutelage.runs.identity import models_in


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
        return read_object(path)
    except InputError:
        return {}
