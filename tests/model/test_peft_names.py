"""Adapter files of either library: names of tensors, embedding and head. PEFT and transformers are asked."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_peft import base_of, shaken
from theirs import IDS, make_theirs, read
from torch import Tensor

from tutelage.errors import InputError
from tutelage.model.gpt import GPT
from tutelage.model.lora import LoRAConfig, add_adapters, merge_adapters
from tutelage.model.peft import from_peft, to_peft

EMBEDDING = {"llama": "embed_tokens", "qwen3": "embed_tokens", "gpt2": "wte", "gpt1": "tokens_embed", "gpt3": "wte"}
QUERY = {"gpt2": "c_attn", "gpt1": "c_attn"}


def theirs_adapted(case: str, folder: Path, **settings: Any) -> Tensor:
    """Logits of PEFT's model; base/ and adapter/ are written as the library writes them."""
    theirs, _ = base_of(case, folder / "base")
    named = {key: [EMBEDDING[case] if v == "E" else QUERY.get(case, "q_proj") if v == "Q" else v for v in value]
             for key, value in settings.items() if isinstance(value, list)}  # fmt: skip
    lora = peft.LoraConfig(r=2, lora_alpha=5, task_type="CAUSAL_LM", fan_in_fan_out=case in QUERY, **(settings | named))
    adapted = peft.get_peft_model(theirs, lora).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder / "adapter")
    return adapted(IDS).logits.detach()


def ours_adapted(folder: Path) -> GPT:
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    return from_peft(read(folder / "base"), config, load_file(folder / "adapter/adapter_model.safetensors")).eval()


@pytest.mark.parametrize(
    "case", ["qwen3", "gpt2", *(pytest.param(case, marks=pytest.mark.slow) for case in ("llama", "gpt1", "gpt3"))]
)
@pytest.mark.parametrize(
    "settings",
    [
        dict(target_modules=["Q", "E"]),
        dict(target_modules=["E"], use_rslora=True),
        dict(target_modules=["Q", "lm_head"]),
        dict(target_modules=["Q", "E"], ensure_weight_tying=True),
        dict(target_modules=["Q"], modules_to_save=["E"]),
        dict(target_modules=["Q"], modules_to_save=["E", "lm_head"]),
    ],
    ids=["embedding", "embedding alone", "head", "both tied", "saved embedding", "saved both"],
)
def test_a_changed_embedding_or_head_gives_their_logits(case: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """The base's whole embedding is in these files, too. Tied models: only the one that is adapted changes."""
    expected = theirs_adapted(case, tmp_path, **settings)
    ours = ours_adapted(tmp_path)
    torch.testing.assert_close(ours(IDS), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(merge_adapters(ours)(IDS), expected, atol=2e-4, rtol=1e-4)


def test_a_trained_embedding_that_stays_tied_stays_tied(tmp_path: Path) -> None:
    """save_embedding_layers writes the whole embedding without a LoRA: in PEFT the tied head follows it."""
    base, _ = base_of("qwen3", tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        adapted.get_input_embeddings().weight.mul_(1.5)
    adapted.eval().save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    ours = ours_adapted(tmp_path)
    torch.testing.assert_close(ours(IDS), adapted(IDS).logits, atol=1e-4, rtol=1e-4)
    assert ours.config.tied


RENAMED = {
    "without the prefix": (lambda name: name.removeprefix("base_model.model."), "default"),
    "with the adapter's name": (lambda name: name.replace(".weight", ".default.weight"), "default"),
    "with another name": (lambda name: name.replace(".weight", ".poet.weight"), "poet"),
    "both": (lambda name: name.removeprefix("base_model.model.").replace(".weight", ".default.weight"), "default"),
}


@pytest.mark.parametrize("style", RENAMED)
def test_names_of_either_style_are_the_trained_model(style: str, tmp_path: Path) -> None:
    """Of the two libraries at least one reads each style as the trained model, the other as the bare base."""
    expected = theirs_adapted("qwen3", tmp_path, target_modules=["Q", "v_proj"])
    rename, name = RENAMED[style]
    file = tmp_path / "adapter/adapter_model.safetensors"
    save_file({rename(key): tensor for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    in_peft = peft.PeftModel.from_pretrained(make_theirs("qwen3"), tmp_path / "adapter", adapter_name=name).eval()
    in_transformers = make_theirs("qwen3")
    in_transformers.load_adapter(str(tmp_path / "adapter"), adapter_name=name)
    gaps = [float((theirs.eval()(IDS).logits - expected).abs().max()) for theirs in (in_peft, in_transformers)]
    assert min(gaps) < 1e-4 < max(gaps)
    torch.testing.assert_close(ours_adapted(tmp_path)(IDS), expected, atol=1e-4, rtol=1e-4)


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    theirs_adapted("llama", tmp_path, target_modules=["Q"])
    file = tmp_path / "adapter/adapter_model.safetensors"
    both = {key.replace(".weight", f".{name}.weight"): t.clone() for key, t in load_file(file).items() for name in "ab"}
    save_file(both, file)
    with pytest.raises(InputError, match="holds 2 adapters, a, b; save one"):
        ours_adapted(tmp_path)


@pytest.mark.parametrize(
    "case, targets, name",
    [("llama", ("q", "gate", "down"), "a poet"), ("gpt2", ("q", "v", "up"), "weight"), ("gpt3", ("q",), "default")],
)
def test_ours_loads_under_any_name_in_both(case: str, targets: tuple[str, ...], name: str, tmp_path: Path) -> None:
    _, ours = base_of(case, tmp_path / "base")
    add_adapters(ours, LoRAConfig(rank=3, alpha=5.0, targets=targets), torch.Generator().manual_seed(0))
    shaken(ours)
    config, tensors = to_peft(ours.eval())
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "base"}))
    contiguous = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    save_file(contiguous, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    in_peft = peft.PeftModel.from_pretrained(make_theirs(case), tmp_path / "adapter", adapter_name=name).eval()
    in_transformers = make_theirs(case)
    in_transformers.load_adapter(str(tmp_path / "adapter"), adapter_name=name)
    for theirs in (in_peft, in_transformers.eval()):
        torch.testing.assert_close(theirs(IDS).logits, ours(IDS), atol=1e-4, rtol=1e-4)
