"""Our decoder in the names that other libraries know.

    GPT <-> (Hugging Face config, {name: tensor})

A folder written with these names is a plain Qwen3 model to transformers and vLLM. Fused maps are split.
Reading refuses what does not fit: a missing or extra tensor, a shape
that disagrees with the configuration.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.model.gpt import GPT, Block, GPTConfig


def to_hf_config(config: GPTConfig) -> dict[str, Any]:
    """The config.json of a Qwen3-shaped decoder. Raises InputError for a shape Qwen3 does not have."""
    if not (config.norm == "rms" and config.mlp == "swiglu" and config.qk_norm) or config.biases or config.band:
        raise InputError("model: only Qwen3-shaped decoders (RMSNorm, SwiGLU, QK-norm, no biases, dense) can be saved")
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "torch_dtype": "float32",
        "dtype": "float32",
    }


def from_hf_config(hf: Mapping[str, Any]) -> GPTConfig:
    """The shape that a config.json describes. Raises InputError for another family or a missing field."""
    if hf.get("model_type") != "qwen3":
        raise InputError(f"model: family {hf.get('model_type')!r} is not read yet; only qwen3 is")
    try:
        rope = hf.get("rope_parameters") or hf
        return GPTConfig(
            vocab_size=hf["vocab_size"],
            width=hf["hidden_size"],
            layers=hf["num_hidden_layers"],
            heads=hf["num_attention_heads"],
            kv_heads=hf["num_key_value_heads"],
            head_width=hf["head_dim"],
            hidden=hf["intermediate_size"],
            context=hf["max_position_embeddings"],
            norm_eps=hf["rms_norm_eps"],
            rope_theta=rope["rope_theta"],
            qk_norm=True,
            tied=hf.get("tie_word_embeddings", False),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"model: config.json does not describe a Qwen3 decoder ({error})") from None


def to_hf_weights(model: GPT) -> dict[str, Tensor]:
    """{Hugging Face name: tensor} of a Qwen3-shaped decoder; a tied head is left out, as its library does."""
    c = model.config
    q, kv = c.heads * c.head_width, c.kv_heads * c.head_width
    weights: dict[str, Any] = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.final_norm.weight,
    }
    if not c.tied:
        weights["lm_head.weight"] = model.head.weight
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        name = f"model.layers.{i}"
        query, key, value = block.attention.qkv.weight.split([q, kv, kv])
        gate, up = block.mlp.up.weight.chunk(2)
        weights |= {
            f"{name}.input_layernorm.weight": block.attention_norm.weight,
            f"{name}.self_attn.q_proj.weight": query,
            f"{name}.self_attn.k_proj.weight": key,
            f"{name}.self_attn.v_proj.weight": value,
            f"{name}.self_attn.q_norm.weight": block.attention.q_norm.weight,
            f"{name}.self_attn.k_norm.weight": block.attention.k_norm.weight,
            f"{name}.self_attn.o_proj.weight": block.attention.out.weight,
            f"{name}.post_attention_layernorm.weight": block.mlp_norm.weight,
            f"{name}.mlp.gate_proj.weight": gate,
            f"{name}.mlp.up_proj.weight": up,
            f"{name}.mlp.down_proj.weight": block.mlp.down.weight,
        }
    return {name: tensor.detach() for name, tensor in weights.items()}


def load_hf_weights(model: GPT, weights: Mapping[str, Tensor]) -> None:
    """Copy named tensors into the decoder. Raises InputError unless names and shapes fit exactly."""
    targets = to_hf_weights(model)
    missing, extra = sorted(targets.keys() - weights.keys()), sorted(weights.keys() - targets.keys())
    if missing or extra:
        raise InputError(
            f"model: the weights lack {len(missing)} tensors ({', '.join(missing[:2])}) and have {len(extra)} unknown "
            f"ones ({', '.join(extra[:2])}); config.json and model.safetensors come from different models"
        )
    for name, target in targets.items():
        if weights[name].shape != target.shape:
            raise InputError(
                f"model: {name} is {tuple(weights[name].shape)}, config.json asks for {tuple(target.shape)}; "
                "they come from different models"
            )
        with torch.no_grad():
            target.copy_(weights[name])  # target is a view into the model's own storage
