"""Models on disk: Hugging Face folders, written atomically and checked when read.

    save_policy / load_policy    config.json, model.safetensors, generation_config.json, the tokenizer's two files
    save_scorer / load_scorer    the same as a one-label sequence classifier; the score is its logit less reward_mean

A folder may hold an adapter instead of a full model: PEFT's files, or a run's `adapter/`. Its base is loaded and the
adapter merged into it. `load_policy` also reads GGUF files. Only safetensors, GGUF and JSON are read. Files that do not
fit together are refused with a one-line error.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.atomic import atomic_path, atomic_write
from tutelage.errors import InputError
from tutelage.model.families import build, copy_weights, load_hf_weights, own_views, to_hf_weights
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.hf_config import (
    OURS,
    NoClassError,
    classifier_of,
    from_hf_config,
    to_hf_config,
    to_own_config,
)
from tutelage.model.lora import merge_adapters
from tutelage.model.peft import from_peft
from tutelage.model.vocabulary import resize_vocabulary
from tutelage.runs.base import find_base
from tutelage.runs.device import Device, release_memory
from tutelage.runs.gguf_file import read_gguf, read_gguf_tokenizer
from tutelage.runs.identity import find_adapter, hash_input, refuse_ring, which_run
from tutelage.text.tokenizer import Tokenizer

SPARE_ROWS = 0.01  # Qwen2.5-0.5B has .2 % more rows than tokens


def save_policy(folder: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """Write a causal language model and its tokenizer, in our own format if transformers has no such model.

    config.json is written last, so that an incomplete folder does not count as a model.
    """
    config, weights = _described(model)
    _write_weights(folder / "model.safetensors", weights)
    tokenizer.save(folder)
    ids = {"eos_token_id": _ends(tokenizer), "pad_token_id": tokenizer.pad_id}
    _write_json(folder / "generation_config.json", ids | {"do_sample": True, "temperature": 1.0})
    _write_json(folder / "config.json", config | ids | {"vocabulary_sha256": tokenizer.vocabulary_sha256})


def _ends(tokenizer: Tokenizer) -> int | list[int]:
    """eos_token_id as transformers reads it: a list if several ids end a response."""
    return tokenizer.end_of_turn_id if len(tokenizer.end_ids) == 1 else list(tokenizer.end_ids)


def load_policy(folder: Path, device: Device, make_chat: bool = False, frozen: bool = False) -> tuple[GPT, Tokenizer]:
    """Read a language model onto the device. Raises InputError if a file is missing, truncated or does not fit.

    make_chat: give a folder without a chat template ours, and its embedding a row for each new special token.
    frozen: read the matrices into the compute precision, which halves their memory in bf16; for models that will not be
    trained. Adapters are merged and GGUF files read in fp32 in any case.
    """
    if folder.is_file():
        model, tokenizer = read_gguf(folder)
        model.compute_dtype = device.compute_dtype
        return model.to(device.torch_device), tokenizer
    if adapter := find_adapter(folder):
        return load_adapted(adapter, device)
    config, tokenizer = _read_config(folder), Tokenizer.load(folder, make_chat)
    if _classifies(config):
        raise InputError(f"{folder}: holds a reward model, not a language model; give a language model")
    if not make_chat:
        _check_vocabulary(folder, config, tokenizer)
    model = _built(config, _read_weights(folder), device, frozen)
    if make_chat and tokenizer.vocab_size > model.config.vocab_size:
        model = resize_vocabulary(model, tokenizer.vocab_size)
    return model.to(device.torch_device), tokenizer


def _described(model: GPT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the named tensors: in transformers' format if it has a class for the model, else in ours."""
    try:
        return to_hf_config(model.config), to_hf_weights(model)
    except NoClassError:
        return to_own_config(model.config), own_views(model)


def _built(config: dict[str, Any], weights: dict[str, Tensor], device: Device, frozen: bool) -> GPT:
    def fill(model: GPT) -> None:
        if config["model_type"] == OURS:
            copy_weights(own_views(model), weights)
        else:
            load_hf_weights(model, weights)

    return build(from_hf_config(config), fill, len(weights), device.compute_dtype, frozen)


def load_adapted(folder: Path, device: Device) -> tuple[GPT, Tokenizer]:
    """The base of an adapter with the adapter merged into it. Raises InputError if the base has moved or changed."""
    model, tokenizer = load_policy(adapter_base(folder), device)
    adapted, adapter_tokenizer = read_adapter(folder, model)
    return merge_adapters(adapted).requires_grad_(True), adapter_tokenizer or tokenizer


def adapter_base(folder: Path) -> Path:
    """Where the adapter's base is. Raises InputError if the base has moved or changed."""
    base = _base_of(folder, read_json(folder / "adapter_config.json").get("base_model_name_or_path"))
    record = read_json(folder / "base.json") if (folder / "base.json").is_file() else {}
    if record and record.get("sha256") != hash_input(base):
        raise InputError(
            f"{folder}: its base {base} has changed since; restore the old base, or train the adapter again"
        )
    return base


def read_adapter(folder: Path, base: GPT) -> tuple[GPT, Tokenizer | None]:
    """Put the adapter on `base` and return it, with the adapter's own tokenizer if its folder has one.

    A PEFT folder may have a tokenizer with another chat template than the base's.
    """
    tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
    if tokenizer:
        _check_vocabulary(folder, {"vocab_size": base.config.vocab_size}, tokenizer)
    tensors = read_safetensors(folder / "adapter_model.safetensors")
    return from_peft(base, read_json(folder / "adapter_config.json"), tensors), tokenizer


def _base_of(folder: Path, name: Any) -> Path:
    """The base that an adapter names: by a path relative to its folder, or by any name that `find_base` knows."""
    if not isinstance(name, str) or not name:
        raise InputError(f"{folder}: adapter_config.json names no base; write its path there")
    place = folder / name
    if (folder / "base.json").is_file() and not place.exists():
        # Ours: the name is relative to this folder. From the current folder it might lead to another model.
        raise InputError(
            f"{folder}: its base is not at {place.resolve()}; move it back there, or train the adapter again"
        )
    base = place if place.exists() else find_base(Path(name))
    if base.resolve() in (folder.resolve(), folder.parent.resolve()):
        raise InputError(f"{folder}: names itself as its base; write the base's path into adapter_config.json")
    refuse_ring(folder)
    return base


def save_scorer(folder: Path, model: ScalarGPT, tokenizer: Tokenizer) -> None:
    """Write a reward or value model as a sequence classifier with one label and no bias."""
    config, weights = _described(model.trunk)
    _write_weights(folder / "model.safetensors", weights | {"score.weight": model.score.weight.detach()})
    tokenizer.save(folder)
    config |= {
        "architectures": [classifier_of(config["architectures"][0])],
        "num_labels": 1,
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "pad_token_id": tokenizer.pad_id,
        "eos_token_id": tokenizer.end_of_turn_id,
        "reward_mean": model.mean,
        "reward_std": model.std,
        "vocabulary_sha256": tokenizer.vocabulary_sha256,
    }
    _write_json(folder / "config.json", config)


def holds_scorer(place: Path) -> bool:
    """Whether the folder holds a reward or value model rather than a language model."""
    config = _read_config(place) if (place / "config.json").is_file() else {}
    return "reward_mean" in config or _classifies(config)


def load_scorer(folder: Path, device: Device, frozen: bool = False) -> tuple[ScalarGPT, Tokenizer]:
    """Read a reward or value model. Errors and `frozen` are as in `load_policy`; a language model is refused."""
    config, tokenizer = _read_config(folder), Tokenizer.load(folder)
    if "reward_mean" not in config and not _classifies(config):
        raise InputError(f"{folder}: holds a language model, not a reward model; make one with `tutelage reward`")
    weights = _read_weights(folder)
    if "score.weight" not in weights:
        raise InputError(f"{folder}: model.safetensors has no score.weight, so it is not a reward model")
    _check_vocabulary(folder, config, tokenizer)
    head = weights.pop("score.weight")
    # transformers' classifiers have no lm_head; with tied embeddings none is expected.
    if config["model_type"] != OURS and "lm_head.weight" not in weights:
        config = config | {"tie_word_embeddings": True}
    model = ScalarGPT(_built(config, weights, device, frozen), config.get("reward_mean", 0.0), config.get("reward_std"))
    if head.shape != model.score.weight.shape:
        raise InputError(
            f"{folder}: score.weight is {tuple(head.shape)}, a reward model's is {tuple(model.score.weight.shape)}"
        )
    with torch.no_grad():
        model.score.weight.copy_(head)
    return model.to(device.torch_device), tokenizer


def _classifies(config: dict[str, Any]) -> bool:
    return str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification")


def load_trunk(folder: Path, device: Device) -> GPT:
    """The decoder of a language model, or of a reward model, without the score head."""
    if (folder / "config.json").is_file() and "reward_mean" in _read_config(folder):
        return load_scorer(folder, device)[0].trunk
    return load_policy(folder, device)[0]


def load_tokenizer(place: Path) -> Tokenizer:
    """The tokenizer of any model that `load_policy` reads."""
    if place.is_file():
        return read_gguf_tokenizer(place)
    adapter = None if (place / "tokenizer.json").is_file() else find_adapter(place)
    if adapter:
        name = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
        return load_tokenizer(_base_of(adapter, name))
    if several := which_run(place):
        raise InputError(several)
    return Tokenizer.load(place)


def same_tokenizer(first: Path, second: Path) -> None:
    """Raises InputError unless both models have the same tokens with the same ids, and the same chat template."""
    one, other = load_tokenizer(first), load_tokenizer(second)
    if (one.vocabulary_sha256, one.chat_template) != (other.vocabulary_sha256, other.chat_template):
        raise InputError(
            f"{first} and {second}: their tokenizers differ (tokens, ids or chat template); use runs made from one base"
        )


def _check_vocabulary(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Raises InputError if the vocabulary's size or hash shows that the tokenizer is not the model's.

    The embedding may have up to SPARE_ROWS more rows, because many models round their vocabulary up to a multiple of 64
    or 128.
    """
    rows, tokens = config["vocab_size"], tokenizer.vocab_size
    if not tokens <= rows <= tokens * (1 + SPARE_ROWS):
        raise InputError(
            f"{folder}: the model has {rows} tokens, tokenizer.json has {tokens}, so they come from different runs; "
            "use a folder that holds one model's files"
        )
    if config.get("vocabulary_sha256") not in (None, tokenizer.vocabulary_sha256):
        raise InputError(
            f"{folder}: tokenizer.json is not the one this model was saved with, so token ids mean different things; "
            "copy the model's own tokenizer"
        )


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    with atomic_path(path) as temporary:
        # Clones, because several tensors may be views of one, and safetensors refuses shared storage.
        clones = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
        save_file(clones, temporary, {"format": "pt"})


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that model.safetensors.index.json lists."""
    release_memory()  # because the weights exist twice while they are copied into the model
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return read_safetensors(single)
    shards = read_json(index).get("weight_map", {})
    if any(Path(name).name != name for name in shards.values()):
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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise InputError(which_run(folder) or f"{folder}: no config.json here; give a finished run that holds a model")
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError if it does not hold one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); copy the model or make it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object; copy the model or make it again")
    return value
