"""A model on disk: a plain Hugging Face folder, written whole and read with every fit checked.

    save_policy / load_policy    config.json, model.safetensors, generation_config.json, the tokenizer's two files
    save_scorer / load_scorer    the same as a one-label sequence classifier; the score is its logit less reward_mean

Only safetensors and JSON are read. What does not fit is refused in one line.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.model.families import from_hf_config, load_hf_weights, to_hf_config, to_hf_weights
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.runs.device import Device
from tutelage.text.tokenizer import Tokenizer


def save_policy(folder: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """Write a causal language model and its tokenizer; config.json comes last, so that half a folder is no model."""
    _write_weights(folder / "model.safetensors", to_hf_weights(model))
    tokenizer.save(folder)
    ids = {"eos_token_id": tokenizer.end_of_turn_id, "pad_token_id": tokenizer.pad_id}
    _write_json(folder / "generation_config.json", ids | {"do_sample": True, "temperature": 1.0})
    _write_json(
        folder / "config.json", to_hf_config(model.config) | ids | {"tokenizer_sha256": _tokenizer_hash(folder)}
    )


def load_policy(folder: Path, device: Device) -> tuple[GPT, Tokenizer]:
    """Read a language model folder onto the device. Raises InputError for anything missing, cut short or foreign."""
    config, tokenizer = _read_config(folder), Tokenizer.load(folder)
    model = GPT(from_hf_config(config), device.compute_dtype)
    _check_vocabulary(folder, config, tokenizer)
    load_hf_weights(model, _read_weights(folder / "model.safetensors"))
    return model.to(device.torch_device), tokenizer


def save_scorer(folder: Path, model: ScalarGPT, tokenizer: Tokenizer) -> None:
    """Write a reward or value model as a sequence classifier with one label and no bias."""
    weights = to_hf_weights(model.trunk) | {"score.weight": model.score.weight.detach()}
    _write_weights(folder / "model.safetensors", weights)
    tokenizer.save(folder)
    config = to_hf_config(model.trunk.config) | {
        "architectures": ["Qwen3ForSequenceClassification"],
        "num_labels": 1,
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "pad_token_id": tokenizer.pad_id,
        "eos_token_id": tokenizer.end_of_turn_id,
        "reward_mean": model.mean,
        "tokenizer_sha256": _tokenizer_hash(folder),
    }
    _write_json(folder / "config.json", config)


def load_scorer(folder: Path, device: Device) -> tuple[ScalarGPT, Tokenizer]:
    """Read a reward or value model. Raises InputError, also when the folder holds a language model instead."""
    config, tokenizer = _read_config(folder), Tokenizer.load(folder)
    if "reward_mean" not in config:
        raise InputError(f"{folder}: holds a language model, not a reward model; make one with `tutelage reward`")
    weights = _read_weights(folder / "model.safetensors")
    if "score.weight" not in weights:
        raise InputError(f"{folder}: model.safetensors has no score.weight, so it is no reward model")
    model = ScalarGPT(GPT(from_hf_config(config), device.compute_dtype), config["reward_mean"])
    _check_vocabulary(folder, config, tokenizer)
    if (found := weights["score.weight"].shape) != model.score.weight.shape:
        raise InputError(
            f"{folder}: score.weight is {tuple(found)}, a reward model's is {tuple(model.score.weight.shape)}"
        )
    with torch.no_grad():
        model.score.weight.copy_(weights.pop("score.weight"))
    load_hf_weights(model.trunk, weights)
    return model.to(device.torch_device), tokenizer


def same_tokenizer(first: Path, second: Path) -> None:
    """Raises InputError unless both folders hold the same tokenizer."""
    if (first / "tokenizer.json").read_bytes() != (second / "tokenizer.json").read_bytes():
        raise InputError(
            f"{first} and {second}: their tokenizers differ, so their token ids do; use runs of one lineage"
        )


def _check_vocabulary(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Raises InputError when the tokenizer is not the one the model was trained with, as far as the folder can tell."""
    if config["vocab_size"] != tokenizer.vocab_size:
        raise InputError(
            f"{folder}: the model has {config['vocab_size']} tokens, tokenizer.json has {tokenizer.vocab_size}. "
            "They come from different runs; point at a directory that holds both"
        )
    if config.get("tokenizer_sha256", _tokenizer_hash(folder)) != _tokenizer_hash(folder):
        raise InputError(
            f"{folder}: tokenizer.json is not the one this model was saved with, its ids mean other words; "
            "copy the model's own"
        )


def _tokenizer_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    with atomic_write(path, "wb") as file:
        file.write(save({n: t.detach().cpu().contiguous().clone() for n, t in weights.items()}, {"format": "pt"}))


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: missing; point at a finished run, or run the stage that makes it again")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); it may be cut short: copy or make it again") from None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no config.json here; point at a finished run that holds a model") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); copy or make the model again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no JSON object; copy or make the model again")
    return config
