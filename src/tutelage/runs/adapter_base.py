"""Where the base of an adapter is: by the path or name in its adapter_config.json, and unchanged since by base.json."""

from pathlib import Path

from tutelage.errors import InputError
from tutelage.json_file import read_object
from tutelage.kinds import PLACE, check_fields, optional
from tutelage.runs.base import find_base
from tutelage.runs.identity import hash_input, refuse_ring


def adapter_base(folder: Path) -> Path:
    """Where the adapter's base is. Raises InputError if the base has moved or changed."""
    base = base_of(folder)
    record = read_object(folder / "base.json") if (folder / "base.json").is_file() else {}
    if record and record.get("sha256") != hash_input(base):
        raise InputError(
            f"{folder}: its base {base} has changed since; restore the old base, or train the adapter again"
        )
    return base


def base_of(folder: Path) -> Path:
    """The base that an adapter names: by a path relative to its folder, or by any name that `find_base` knows."""
    config = folder / "adapter_config.json"
    name = read_object(config).get("base_model_name_or_path")
    check_fields({"base_model_name_or_path": name}, {"base_model_name_or_path": optional(PLACE)}, str(config))
    if not isinstance(name, str) or not name:
        raise InputError(f"{folder}: adapter_config.json names no base; write its path there")
    place = folder / name
    if (folder / "base.json").is_file() and not place.exists():
        # Ours: the name is relative to this folder. From the current folder it might lead to another model.
        raise InputError(
            f"{folder}: its base {place.resolve()}: no such folder or file; move it back, or train the adapter again"
        )
    base = place if place.exists() else find_base(Path(name))
    if base.resolve() in (folder.resolve(), folder.parent.resolve()):
        raise InputError(f"{folder}: names itself as its base; write the base's path into adapter_config.json")
    refuse_ring(folder)
    return base
