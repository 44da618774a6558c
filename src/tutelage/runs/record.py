"""run.json: what a finished run was made from, which files it has, and whether they are still there.

run.json -> read_run -> record;  record, folder -> missing_file -> what is gone or cut short
"""

from pathlib import Path
from typing import Any

from tutelage.errors import InputError
from tutelage.json_file import read_object
from tutelage.kinds import OBJECT, STRING, check_fields, mapped, whole

RECORD, BEGIN = "run.json", b'{\n  "stage": "'
LOGS = (RECORD, "metrics.jsonl")
OPTIONAL = "generation_config.json"  # a model loads without it
WEIGHTS = ".safetensors"
KINDS = {
    "stage": STRING,
    "config": OBJECT,
    "inputs": mapped(mapped(STRING)),
    "fingerprint": STRING,
    "results": OBJECT,
    "files": mapped(whole()),
}
REQUIRED = ("stage", "config", "inputs", "fingerprint")


def read_run(out: Path) -> dict[str, Any] | None:
    """run.json of a finished run; None if there is none or it is not a run's record."""
    try:
        record = read_object(out / RECORD)
        check_fields(record, KINDS, RECORD)
    except InputError:
        return None
    return record if record.keys() >= set(REQUIRED) else None


def is_damaged_record(path: Path) -> bool:
    """Whether a run.json is ours but no record: empty, as after a power cut, cut short, or without a field it needs."""
    if not path.is_file() or read_run(path.parent):
        return False
    content = path.read_bytes()
    if not content.strip(b"\0 \t\r\n"):
        return True
    try:
        return bool(read_object(path).keys() & {"stage", "fingerprint"})
    except InputError:
        return content.startswith(BEGIN) or BEGIN.startswith(content)


def files_of(out: Path) -> dict[str, int]:
    """{relative path: bytes} of what a run has made: the files of its folder and of its adapter, without its logs."""
    found = (path for pattern in ("*", "adapter/*") for path in sorted(out.glob(pattern)) if path.is_file())
    kept = (path for path in found if path.name not in (*LOGS, OPTIONAL) and not path.name.startswith("."))
    return {str(path.relative_to(out)): path.stat().st_size for path in kept}


def missing_file(out: Path, record: dict[str, Any]) -> str | None:
    """What a finished run has lost since, in words: a file, or a part of its weights; None if nothing."""
    for name, size in record.get("files", {}).items():
        path = out / name
        if not path.is_file():
            return f"{name} is missing"
        if path.suffix == WEIGHTS and (left := path.stat().st_size) != size:
            return f"{name} has {left:,} bytes, {size:,} when the run ended"
    return None


def already_finished(record: dict[str, Any]) -> str:
    """What to say to somebody who starts a finished run again."""
    return (
        f"already finished on {finished_at(record)} UTC with these settings and inputs; nothing to do; for another "
        "run, change a setting such as --seed, or choose another --out"
    )


def finished_at(record: dict[str, Any]) -> str:
    """2026-08-01 12:30"""
    return str(record.get("finished", ""))[:16].replace("T", " ")


def record_beside(product: Path, stage: str, overwrite: bool) -> Path:
    """The run directory of a stage that makes one file. Raises InputError if the file is there, but no run made it."""
    if not product.name or product.is_dir():
        raise InputError(f"{stage}: --out {product}: is a folder; name a file in it")
    record = product.with_suffix(".run")
    made_here = read_run(record) or (record / "checkpoints" / "fingerprint").is_file()
    if product.exists() and not made_here and not overwrite:
        raise InputError(f"{stage}: {product} already exists; choose another --out, or give --overwrite")
    return record
