"""Models on disk: Hugging Face folders, written atomically and checked when read.

    save_policy / load_policy    config.json, model.safetensors, generation_config.json, the tokenizer's two files
    save_scorer / load_scorer    the same as a one-label sequence classifier; the score is its logit less reward_mean

A folder may hold an adapter instead of a full model: PEFT's files, or a run's `adapter/`. Its base is loaded and the
adapter merged into it. `load_policy` also reads GGUF files. Only safetensors, GGUF and JSON are read. Files that do not
fit together are refused with a one-line error.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import InputError, located
from tutelage.json_file import read_object
from tutelage.model.families import build, copy_weights, load_hf_weights, own_views, to_hf_weights, with_own_head
from tutelage.model.gpt import GPT
from tutelage.model.heads import LastToken, ScalarGPT
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
from tutelage.model.peft_tables import changes_tables
from tutelage.model.vocabulary import resize_vocabulary
from tutelage.runs.adapter_base import adapter_base, base_of
from tutelage.runs.device import Device
from tutelage.runs.files import read_safetensors, read_weights, write_json, write_weights
from tutelage.runs.gguf_file import read_gguf, read_gguf_tokenizer
from tutelage.runs.identity import find_adapter, which_run
from tutelage.text.tokenizer import Tokenizer

CONFIG = "adapter_config.json"
HEAD = re.compile(r"(.+\.)?score(\.modules_to_save)?(\.[^.]+)?\.weight")  # of a reward model that PEFT saved
MOST_ROWS = 2  # rows of an embedding per token; DeepSeek-LLM-7B has 1.024


def save_policy(folder: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """Write a causal language model and its tokenizer, in our own format if transformers has no such model.

    config.json is written last, so that an incomplete folder does not count as a model.
    """
    config, weights = _described(model)
    write_weights(folder / "model.safetensors", weights)
    tokenizer.save(folder)
    ids = {"eos_token_id": _ends(tokenizer), "pad_token_id": tokenizer.pad_id}
    write_json(folder / "generation_config.json", ids | {"do_sample": True, "temperature": 1.0})
    write_json(folder / "config.json", config | ids | {"vocabulary_sha256": tokenizer.vocabulary_sha256})


def _ends(tokenizer: Tokenizer) -> int | list[int]:
    """eos_token_id as transformers reads it: a list if several ids end a response."""
    return tokenizer.end_of_turn_id if len(tokenizer.end_ids) == 1 else list(tokenizer.end_ids)


def load_policy(folder: Path, device: Device, make_chat: bool = False, frozen: bool = False) -> tuple[GPT, Tokenizer]:
    """Read a language model onto the device. Raises InputError if a file is missing, truncated or does not fit.

    make_chat: give a folder without a chat template ours, and its embedding a row for each new special token.
    frozen: read the matrices into the compute precision, which halves their memory in bf16; for models that will not be
    trained. Adapters are merged and GGUF files read in fp32 in any case.
    """
    model, tokenizer = _read(folder, device, make_chat, frozen)
    if tokenizer.new_tokens:  # rows of no token are untrained, so the new ones do not take them over
        rows, known = model.config.vocab_size, tokenizer.vocab_size - tokenizer.new_tokens
        model = resize_vocabulary(resize_vocabulary(model, min(known, rows)), max(rows, tokenizer.vocab_size))
    model.tokens = tokenizer.vocab_size
    return model.to(device.torch_device), tokenizer


def _read(folder: Path, device: Device, make_chat: bool, frozen: bool) -> tuple[GPT, Tokenizer]:
    """A model and its tokenizer, which with make_chat may have more tokens than the embedding has rows."""
    if folder.is_file():
        model, tokenizer = read_gguf(folder, make_chat)
        model.compute_dtype = device.compute_dtype
        return model, tokenizer
    if adapter := find_adapter(folder):
        return _read_adapted(adapter, device, make_chat)
    config, tokenizer = read_config(folder), Tokenizer.load(folder, make_chat)
    if _classifies(config):
        raise InputError(f"{folder}: holds a reward model, not a language model; give a language model")
    if not make_chat:
        _check_vocabulary(folder, config, tokenizer)
    with located(str(folder)):
        return _built(config, read_weights(folder), device, frozen), tokenizer


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

    shape = from_hf_config(config)
    shape = shape if config["model_type"] == OURS else with_own_head(shape, weights)
    return build(shape, fill, weights, device.compute_dtype, frozen)


def _read_adapted(folder: Path, device: Device, make_chat: bool) -> tuple[GPT, Tokenizer]:
    """The base of an adapter with the adapter merged into it. Raises InputError if the base has moved or changed."""
    model, tokenizer = _read(adapter_base(folder), device, make_chat, frozen=False)
    adapted, adapter_tokenizer = read_adapter(folder, model, make_chat)
    return merge_adapters(adapted).requires_grad_(True), adapter_tokenizer or tokenizer


def read_adapter(folder: Path, base: GPT, make_chat: bool = False) -> tuple[GPT, Tokenizer | None]:
    """Put the adapter on `base` and return it, with the adapter's own tokenizer if its folder has one.

    A PEFT folder may have a tokenizer with another chat template than the base's, or with more tokens.
    """
    tokenizer = Tokenizer.load(folder, make_chat) if (folder / "tokenizer.json").is_file() else None
    tensors = read_safetensors(folder / "adapter_model.safetensors")
    with located(str(folder)):
        adapted = from_peft(base, read_object(folder / CONFIG), tensors)
    if tokenizer and not make_chat:
        _check_vocabulary(folder, {"vocab_size": adapted.config.vocab_size}, tokenizer)
    return adapted, tokenizer


def shares_base(folder: Path) -> bool:
    """Whether a model with this adapter can share its base's weights: only linear maps are adapted, and the tokens are
    the base's.
    """
    tensors, base = read_safetensors(folder / "adapter_model.safetensors"), adapter_base(folder)
    own = Tokenizer.load(folder).vocab_size if (folder / "tokenizer.json").is_file() else None
    return not changes_tables(tensors) and own in (None, load_tokenizer(base).vocab_size)


def save_scorer(folder: Path, model: ScalarGPT, tokenizer: Tokenizer) -> None:
    """Write a reward or value model as a sequence classifier with one label and no bias."""
    config, weights = _described(model.trunk)
    write_weights(folder / "model.safetensors", weights | {"score.weight": model.score.weight.detach()})
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
    write_json(folder / "config.json", config)


def holds_scorer(place: Path) -> bool:
    """Whether the folder holds a reward or value model rather than a language model."""
    if adapter := find_adapter(place) if place.is_dir() else None:
        return read_object(adapter / CONFIG).get("task_type") == "SEQ_CLS"
    config = read_config(place) if (place / "config.json").is_file() else {}
    return "reward_mean" in config or _classifies(config)


def load_scorer(folder: Path, device: Device, frozen: bool = False) -> tuple[ScalarGPT, Tokenizer]:
    """Read a reward or value model, also one that is an adapter. Errors and `frozen` are as in `load_policy`."""
    if adapter := find_adapter(folder):
        return _read_adapted_scorer(adapter, device)
    config, tokenizer = read_config(folder), Tokenizer.load(folder)
    if "reward_mean" not in config and not _classifies(config):
        raise InputError(f"{folder}: holds a language model, not a reward model; make one with `tutelage reward`")
    weights = read_weights(folder)
    if "score.weight" not in weights:
        raise InputError(f"{folder}: model.safetensors has no score.weight, so it is not a reward model")
    _check_vocabulary(folder, config, tokenizer)
    head = weights.pop("score.weight")
    # transformers' classifiers have no lm_head; with tied embeddings none is expected.
    if config["model_type"] != OURS and "lm_head.weight" not in weights:
        config = config | {"tie_word_embeddings": True}
    with located(str(folder)):
        trunk, ours = _built(config, weights, device, frozen), "reward_mean" in config
    place = None if ours else LastToken(config.get("pad_token_id"))
    model = ScalarGPT(trunk, config.get("reward_mean", 0.0), config.get("reward_std"), place)
    set_head(model, head, folder)
    return model.to(device.torch_device), tokenizer


def _read_adapted_scorer(folder: Path, device: Device) -> tuple[ScalarGPT, Tokenizer]:
    """A reward model that PEFT saved: its base, the adapter merged into it, and the head beside the adapter."""
    tensors, base = read_safetensors(folder / "adapter_model.safetensors"), adapter_base(folder)
    heads = [name for name in tensors if HEAD.fullmatch(name)]
    if len(heads) != 1:
        raise InputError(f"{folder}: holds no head, score.weight, so it is not a reward model")
    head, scorer = tensors.pop(heads[0]), holds_scorer(base)
    trunk, tokenizer = load_scorer(base, device) if scorer else _read(base, device, make_chat=False, frozen=False)
    with located(str(folder)):
        plain = trunk.trunk if isinstance(trunk, ScalarGPT) else trunk
        adapted = from_peft(plain, read_object(folder / CONFIG), tensors)
    tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else tokenizer
    pad = None if base.is_file() else read_config(base).get("pad_token_id")
    model = ScalarGPT(merge_adapters(adapted), last_token=LastToken(pad))
    set_head(model, head, folder)
    return model.to(device.torch_device), tokenizer


@torch.no_grad()
def set_head(model: ScalarGPT, head: Tensor, folder: Path) -> None:
    """Copy the weights of a score head, (1, C). Raises InputError if they are none."""
    if head.shape != model.score.weight.shape:
        raise InputError(
            f"{folder}: score.weight is {tuple(head.shape)}, a reward model's is {tuple(model.score.weight.shape)}"
        )
    with located(str(folder)):
        copy_weights({"score.weight": model.score.weight}, {"score.weight": head})


def _classifies(config: dict[str, Any]) -> bool:
    return str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification")


def load_trunk(folder: Path, device: Device) -> GPT:
    """The decoder of a language model, or of a reward model, without the score head."""
    if (folder / "config.json").is_file() and "reward_mean" in read_config(folder):
        return load_scorer(folder, device)[0].trunk
    return load_policy(folder, device)[0]


def load_tokenizer(place: Path) -> Tokenizer:
    """The tokenizer of any model that `load_policy` reads."""
    if place.is_file():
        return read_gguf_tokenizer(place)
    adapter = None if (place / "tokenizer.json").is_file() else find_adapter(place)
    if adapter:
        return load_tokenizer(base_of(adapter))
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

    The embedding may have more rows than there are tokens, because many models round their vocabulary up; the rows of
    no token are never sampled. If more than half are, the tokenizer is taken to be another model's.
    """
    rows, tokens, known = config["vocab_size"], tokenizer.vocab_size, config.get("vocabulary_sha256")
    other = known not in (None, tokenizer.vocabulary_sha256)
    if tokens > rows or (other and tokens < rows) or (not known and rows > MOST_ROWS * tokens):
        raise InputError(
            f"{folder}: the model has {rows} tokens, tokenizer.json has {tokens}, so they come from different runs; "
            "use a folder that holds one model's files"
        )
    if other:
        raise InputError(
            f"{folder}: tokenizer.json is not the one this model was saved with, so token ids mean different things; "
            "copy the model's own tokenizer"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises InputError if it is missing, or describes no model that we support."""
    if not (folder / "config.json").is_file():
        raise InputError(which_run(folder) or f"{folder}: no config.json here; give a finished run that holds a model")
    config = read_object(folder / "config.json")
    with located(str(folder)):
        from_hf_config(config)
    return config
