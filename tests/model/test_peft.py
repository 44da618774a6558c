"""Adapters to and from PEFT, compared with the library's own model on the same weights."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from theirs import IDS, make_theirs, read

from tutelage.errors import InputError
from tutelage.model.gpt import GPT
from tutelage.model.lora import LoRAConfig, adapted_linears, add_adapters, frozen_depth
from tutelage.model.peft import from_peft, to_peft

LLAMA_MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
THEIR_TARGETS: dict[str, Any] = {
    "llama": ["q_proj", "v_proj"],
    "qwen3": LLAMA_MAPS,
    "mistral": LLAMA_MAPS,
    "gpt2": ["c_attn", "mlp.c_fc", "c_proj"],
    "gpt1": ["c_attn"],
    "gpt3": ["q_proj", "out_proj"],
}


def base_of(case: str, folder: Path) -> tuple[Any, GPT]:
    theirs = make_theirs(case)
    theirs.save_pretrained(folder)
    return theirs, read(folder)


def shaken(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or ".adapter." in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("case", THEIR_TARGETS)
def test_an_adapter_of_theirs_gives_their_logits(case: str, stabilised: bool, tmp_path: Path) -> None:
    theirs, ours = base_of(case, tmp_path / "base")
    patterns = {name: 5 for name in ("v_proj", "c_fc") if name in str(THEIR_TARGETS[case])}
    settings = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=THEIR_TARGETS[case], use_rslora=stabilised, task_type="CAUSAL_LM",
        rank_pattern=patterns, alpha_pattern=patterns, fan_in_fan_out=case in ("gpt1", "gpt2"),
    )  # fmt: skip
    adapted = peft.get_peft_model(theirs, settings).eval()
    shaken(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    from_peft(ours, config, load_file(tmp_path / "adapter/adapter_model.safetensors"))
    torch.testing.assert_close(ours.eval()(IDS), adapted(IDS).logits, atol=1e-4, rtol=1e-4)


OUR_TARGETS = {
    "llama": ("q", "v"), "qwen3": ("q", "k", "v", "out", "gate", "up", "down"), "gpt2": ("q", "v", "out", "down"),
    "gpt3": ("q", "k", "up"), "gpt1": ("q", "v", "up"),
}  # fmt: skip


@pytest.mark.parametrize("case", OUR_TARGETS)
def test_an_adapter_of_ours_loads_in_peft_and_comes_back(case: str, tmp_path: Path) -> None:
    theirs, ours = base_of(case, tmp_path / "base")
    add_adapters(ours, LoRAConfig(rank=3, alpha=5.0, targets=OUR_TARGETS[case]), torch.Generator().manual_seed(0))
    shaken(ours)
    config, tensors = to_peft(ours.eval())
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    save_file(
        {name: t.contiguous().clone() for name, t in tensors.items()}, tmp_path / "adapter/adapter_model.safetensors"
    )
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(IDS).logits, ours(IDS), atol=1e-4, rtol=1e-4)
    again = from_peft(read(tmp_path / "base"), config, tensors).eval()
    torch.testing.assert_close(again(IDS), ours(IDS), atol=1e-5, rtol=1e-5)
    assert len(list(adapted_linears(again))) == len(list(adapted_linears(ours)))


def test_an_adapter_in_the_top_layers_is_one_in_peft(tmp_path: Path) -> None:
    theirs, ours = base_of("llama", tmp_path / "base")
    add_adapters(ours, LoRAConfig(rank=3, layers=1), torch.Generator().manual_seed(0))
    shaken(ours)
    config, tensors = to_peft(ours.eval())
    assert config["layers_to_transform"] == [len(ours.blocks) - 1] and len(ours.blocks) > 1
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    save_file(
        {name: t.contiguous().clone() for name, t in tensors.items()}, tmp_path / "adapter/adapter_model.safetensors"
    )
    loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert sum("lora_A" in name for name, _ in loaded.named_parameters()) == 2  # q and v of one layer, no other
    torch.testing.assert_close(loaded(IDS).logits, ours(IDS), atol=1e-4, rtol=1e-4)
    again = from_peft(read(tmp_path / "base"), config, tensors)
    assert frozen_depth(again) == frozen_depth(ours) == len(ours.blocks) - 1


def adapter_of_llama(tmp_path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], GPT]:
    _, ours = base_of("llama", tmp_path / "base")
    config, tensors = to_peft(add_adapters(ours, LoRAConfig(rank=2), torch.Generator()))
    return config, dict(tensors), read(tmp_path / "base")


def test_other_kinds_of_adapters_are_refused_in_one_line(tmp_path: Path) -> None:
    config, tensors, base = adapter_of_llama(tmp_path)
    for change in ({"peft_type": "LOHA"}, {"use_dora": True}, {"bias": "all"}, {"init_lora_weights": "pissa"}):
        with pytest.raises(InputError, match="only plain LoRA is supported"):
            from_peft(base, config | change, tensors)


def test_numbers_that_make_no_adapter_are_refused_in_one_line(tmp_path: Path) -> None:
    config, tensors, base = adapter_of_llama(tmp_path)
    for change in ({"r": 0}, {"lora_alpha": None}, {"rank_pattern": [1]}, {"alpha_pattern": {"(": 1}}):
        with pytest.raises(InputError, match="does not describe a LoRA"):
            from_peft(base, config | change, tensors)


def test_patterns_that_could_take_for_ever_are_refused(tmp_path: Path) -> None:
    """rank_pattern and alpha_pattern hold regular expressions. The usual ones are those of PEFT."""
    config, tensors, base = adapter_of_llama(tmp_path)
    for pattern in ("q_proj", r".*\.layers\.0\.self_attn\.q_proj", "^layers.[01].*(q|v)_proj", "(?:q|k)_proj"):
        from_peft(read(tmp_path / "base"), config | {"alpha_pattern": {pattern: 3}}, tensors)
    for pattern in ("a*b*c*d*", "x" * 201, "(ab)+", "(a|b){3}"):
        with pytest.raises(InputError, match=r"adapter: the pattern .* is too intricate; name the modules instead"):
            from_peft(base, config | {"alpha_pattern": {pattern: 3}}, tensors)


def test_matrices_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    config, tensors, base = adapter_of_llama(tmp_path)
    name = sorted(tensors)[0]
    for matrix, words in (
        (tensors[name].int(), "numbers of type int32"),
        (tensors[name] * torch.inf, "NaN or infinity"),
    ):
        with pytest.raises(InputError, match=f"{name} holds {words}"):
            from_peft(base, config, tensors | {name: matrix})


def test_an_adapter_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    config, tensors, base = adapter_of_llama(tmp_path)
    first = sorted(tensors)[0]
    for broken, words in (
        ({name: t for name, t in tensors.items() if name != first}, "are incomplete or do not match"),
        ({name.replace("q_proj", "w_proj"): t for name, t in tensors.items()}, "base model has no linear map"),
        ({name.replace("layers.2", "layers.7"): t for name, t in tensors.items()}, "base model has no linear map"),
        ({name: t[:, :-1] if "lora_A" in name else t for name, t in tensors.items()}, "another model"),
        (tensors | {"base_model.model.score.weight": torch.zeros(1, 32)}, "not a LoRA matrix of a linear map"),
        ({}, "contains no LoRA matrices"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            from_peft(base, config, broken)
        assert "\n" not in str(refused.value)
