"""The same weights in transformers' GPT-1, GPT-2 and Qwen3 give the same logits (A3). Theirs is the expectation."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tutelage.errors import InputError
from tutelage.model.families import from_hf_config, load_hf_weights, to_hf_config, to_hf_weights
from tutelage.model.gpt import GPT

IDS = torch.tensor([[5, 17, 260, 33, 8, 120, 77, 201, 9, 45], [61, 2, 2, 290, 14, 15, 16, 99, 100, 3]])
SMALL = dict(
    vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
)
BLOCK = {  # OpenAI's names of a block's parts, and ours
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
    "ln_1": "attention_norm",
    "ln_2": "mlp_norm",
}


def shake(model: torch.nn.Module) -> None:
    """Random weights everywhere, gains and biases too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            gain = p.ndim == 1 and name.endswith("weight")
            p.copy_(0.2 * torch.randn(p.shape, generator=generator) + float(gain))


def copy_openai_weights(theirs: dict[str, Tensor], ours: GPT, names: dict[str, str]) -> None:
    """OpenAI's linear maps are stored input first (Conv1D), so they are transposed."""
    state = {mine: theirs[their] for their, mine in names.items()}
    for i in range(ours.config.layers):
        for part, mine in BLOCK.items():
            for kind in ("weight", "bias"):
                tensor = theirs[f"transformer.h.{i}.{part}.{kind}"]
                state[f"blocks.{i}.{mine}.{kind}"] = tensor.T if tensor.ndim == 2 else tensor
    ours.load_state_dict(state, strict=True)


def test_gpt2(make_gpt: Any) -> None:
    theirs = GPT2LMHeadModel(GPT2Config(n_inner=48, **SMALL)).eval()
    shake(theirs)
    ours = make_gpt("gpt2")
    names = {"wte.weight": "embedding.weight", "wpe.weight": "positions.weight"}
    names |= {"ln_f.weight": "final_norm.weight", "ln_f.bias": "final_norm.bias"}
    copy_openai_weights(theirs.state_dict(), ours, {f"transformer.{k}": v for k, v in names.items()})
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)


def test_gpt1(make_gpt: Any) -> None:
    theirs = OpenAIGPTLMHeadModel(OpenAIGPTConfig(afn="gelu", **SMALL)).eval()  # their "gelu" is the tanh form
    shake(theirs)
    ours = make_gpt("gpt1", hidden=4 * 32)
    names = {"tokens_embed.weight": "embedding.weight", "positions_embed.weight": "positions.weight"}
    copy_openai_weights(theirs.state_dict(), ours, {f"transformer.{k}": v for k, v in names.items()})
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)


def qwen3(tied: bool) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        intermediate_size=48, max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=tied, rms_norm_eps=1e-5,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    shake(model)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_qwen3_from_their_weights(tied: bool) -> None:
    theirs = qwen3(tied)
    ours = GPT(from_hf_config(theirs.config.to_dict())).eval()
    weights = {name: tensor for name, tensor in theirs.state_dict().items() if not (tied and name == "lm_head.weight")}
    load_hf_weights(ours, weights)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)
    left_padded = torch.tensor([[0, 0, 0] + [1] * 7, [1] * 10])
    logits = theirs(IDS, attention_mask=left_padded).logits[0, 3:]
    torch.testing.assert_close(ours(IDS[:1, 3:])[0], logits, atol=1e-4, rtol=1e-4)


def test_gradients_are_theirs_too() -> None:
    theirs = qwen3(tied=True)
    ours = GPT(from_hf_config(theirs.config.to_dict()))
    load_hf_weights(ours, {n: t for n, t in theirs.state_dict().items() if n != "lm_head.weight"})
    labels = IDS.clone()
    labels[:, :4] = -100  # S4: a prompt that is not learnt
    theirs(IDS, labels=labels).loss.backward()
    loss = torch.nn.functional.cross_entropy(ours(IDS)[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100)
    loss.backward()
    torch.testing.assert_close(ours.embedding.weight.grad, theirs.model.embed_tokens.weight.grad, atol=1e-5, rtol=1e-3)
    q, k, v = ours.blocks[0].attention.qkv.weight.grad.split([48, 24, 24])
    for mine, name in ((q, "q_proj"), (k, "k_proj"), (v, "v_proj")):
        expected = getattr(theirs.model.layers[0].self_attn, name).weight.grad
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-3)


def test_a_family_qwen3_cannot_be_is_not_saved(make_gpt: Any) -> None:
    for family in ("gpt1", "gpt2", "gpt3"):
        with pytest.raises(InputError, match="Qwen3"):
            to_hf_config(make_gpt(family).config)


def test_foreign_configurations_and_weights_are_refused(make_gpt: Any) -> None:
    model = make_gpt()
    config, weights = to_hf_config(model.config), to_hf_weights(model)
    with pytest.raises(InputError, match="'llama'"):
        from_hf_config(config | {"model_type": "llama"})
    with pytest.raises(InputError, match="head_dim"):
        from_hf_config({k: v for k, v in config.items() if k != "head_dim"})
    with pytest.raises(InputError, match="does not describe"):
        from_hf_config(config | {"num_key_value_heads": 3})
    with pytest.raises(InputError, match="lack 1 tensors .model.norm.weight"):
        load_hf_weights(model, {n: t for n, t in weights.items() if n != "model.norm.weight"})
    with pytest.raises(InputError, match="1 unknown ones .lm_head.weight"):
        load_hf_weights(model, weights | {"lm_head.weight": torch.zeros(300, 32)})
    with pytest.raises(InputError, match=r"model.norm.weight is \(31,\), config.json asks for \(32,\)"):
        load_hf_weights(model, weights | {"model.norm.weight": torch.zeros(31)})
