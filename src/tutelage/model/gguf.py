"""The decoder in the names and numbers of GGUF, llama.cpp's format. `runs/gguf_file.py` reads and writes the files.

    GPTConfig <-> metadata {key: number};  GPT <-> {GGUF tensor name: tensor}

For Llama, llama.cpp's rotary positions pair neighbouring channels of a head, ours channel i with i + D/2. The rows of
its query and key matrices are therefore reordered on writing and on reading; Qwen's files have our order. Llama 3's
scaling of the rotary frequencies is stored as one factor per pair of channels.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.kinds import COUNT, check_fields
from tutelage.model.config import GPTConfig, RopeScaling
from tutelage.model.families import Names, copy_weights, named_views
from tutelage.model.gpt import GPT
from tutelage.model.hf_config import family_of
from tutelage.model.hf_fields import FP32

GGUF_LLAMA: Names = {
    "embedding": ("token_embd",),
    "final_norm": ("output_norm",),
    "head": ("output",),
    "blocks": ("blk",),
    "attention_norm": ("attn_norm",),
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.q_norm": ("attn_q_norm",),
    "attention.k_norm": ("attn_k_norm",),
    "attention.out": ("attn_output",),
    "mlp_norm": ("ffn_norm",),
    "mlp.up": ("ffn_gate", "ffn_up"),
    "mlp.down": ("ffn_down",),
}
GGUF_GPT2: Names = GGUF_LLAMA | {
    "positions": ("position_embd",),
    "attention.qkv": ("attn_qkv",),
    "mlp.up": ("ffn_up",),
}
TENSORS = {"llama": GGUF_LLAMA, "qwen2": GGUF_LLAMA, "qwen3": GGUF_LLAMA, "gpt2": GGUF_GPT2}
FREQUENCIES = "rope_freqs.weight"
COUNTS = (
    "block_count embedding_length feed_forward_length context_length rope.dimension_count attention.head_count "
    "attention.head_count_kv attention.key_length"
).split()
REALS = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "rope.freq_base")
KINDS = {**dict.fromkeys(COUNTS, COUNT), **dict.fromkeys(REALS, FP32)}

Metadata = Mapping[str, Any]


def from_metadata(metadata: Metadata, tensors: Mapping[str, Tensor]) -> GPTConfig:
    """The shape that a GGUF describes. Raises InputError for an unsupported architecture or setting."""
    kind = str(metadata.get("general.architecture"))
    if kind not in TENSORS:
        raise InputError(f"gguf: the architecture {kind!r} is not supported; supported are {', '.join(TENSORS)}")
    if metadata.get(f"{kind}.expert_count"):
        raise InputError("gguf: a mixture of experts is not supported")
    if (scaling := metadata.get(f"{kind}.rope.scaling.type", "none")) != "none":
        raise InputError(f"gguf: rotary positions of type {scaling!r} are not supported")
    problem = f"gguf: the metadata does not describe a {kind} decoder"
    check_fields(metadata, {f"{kind}.{name}": value for name, value in KINDS.items()}, problem)
    try:
        return _read_shape(kind, lambda name: metadata[f"{kind}.{name}"], metadata, tensors)
    except (KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{problem} ({error})") from None


def _read_shape(
    kind: str, number: Callable[[str], Any], metadata: Metadata, tensors: Mapping[str, Tensor]
) -> GPTConfig:
    """The shape, where `number` looks up a key of this architecture and raises KeyError if it is missing."""
    width, heads = number("embedding_length"), number("attention.head_count")
    shape: dict[str, Any] = dict(
        vocab_size=len(tensors["token_embd.weight"]),
        width=width,
        layers=number("block_count"),
        heads=heads,
        kv_heads=metadata.get(f"{kind}.attention.head_count_kv", heads),
        hidden=number("feed_forward_length"),
        head_width=metadata.get(f"{kind}.attention.key_length", width // heads),
        context=number("context_length"),
        tied="output.weight" not in tensors,
    )
    if kind == "gpt2":
        shape |= dict(norm="layer", learned_positions=True, mlp="gelu", biases=True)
        return GPTConfig(**shape, norm_eps=decimal(number("attention.layer_norm_epsilon")))
    if (rotated := metadata.get(f"{kind}.rope.dimension_count", shape["head_width"])) != shape["head_width"]:
        raise ValueError(f"{rotated} of {shape['head_width']} channels of a head are rotated; all must be")
    theta = decimal(metadata.get(f"{kind}.rope.freq_base", 10_000.0))
    factors = tensors.get(FREQUENCIES)
    return GPTConfig(
        **shape,
        norm_eps=decimal(number("attention.layer_norm_rms_epsilon")),
        rope_theta=theta,
        rope_scaling=None if factors is None else infer_scaling(factors, theta),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )


def decimal(number: float) -> float:
    """The number in the model's config.json: the shortest decimal of those with the same fp32.

    GGUF holds numbers in fp32. With 9.99999974737875e-06 a model would count as another than its original.
    """
    return float(str(np.float32(number)))


def to_metadata(config: GPTConfig) -> dict[str, Any]:
    """{key: number}, without the tokenizer's keys. Raises InputError for a shape that llama.cpp does not support."""
    kind = architecture_of(config)
    common = {
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.hidden,
        "attention.head_count": config.heads,
        "vocab_size": config.vocab_size,
    }
    if kind == "gpt2":
        specific: dict[str, Any] = {"attention.layer_norm_epsilon": config.norm_eps}
    else:
        specific = {
            "attention.head_count_kv": config.kv_heads,
            "attention.key_length": config.head_width,
            "attention.value_length": config.head_width,
            "attention.layer_norm_rms_epsilon": config.norm_eps,
            "rope.dimension_count": config.head_width,
            "rope.freq_base": config.rope_theta,
        }
    return {f"{kind}.{name}": value for name, value in (common | specific).items()}


def load_gguf_weights(model: GPT, tensors: Mapping[str, Tensor]) -> None:
    """Copy GGUF tensors into the decoder. Raises InputError unless names and shapes fit exactly."""
    kind = architecture_of(model.config)
    named = {name: tensor for name, tensor in tensors.items() if name != FREQUENCIES}
    if kind == "llama":
        named = {name: _reordered(name, tensor, model.config, ours=True) for name, tensor in named.items()}
    copy_weights(named_views(model, TENSORS[kind]), named)


def to_gguf_weights(model: GPT) -> dict[str, Tensor]:
    """{GGUF name: tensor}. Raises InputError for a shape that llama.cpp does not support."""
    kind = architecture_of(model.config)
    views = named_views(model, TENSORS[kind])
    if kind == "llama":
        views = {name: _reordered(name, tensor, model.config, ours=False) for name, tensor in views.items()}
    if model.config.rope_scaling:
        views[FREQUENCIES] = rope_factors(model.config.rope_scaling, model.config.head_width, model.config.rope_theta)
    return views


def _reordered(name: str, tensor: Tensor, config: GPTConfig, ours: bool) -> Tensor:
    """Reorder the rows of a query or key matrix; other tensors are returned unchanged.

    Channels 0, 1, 2, 3, ... of a head in llama.cpp are channels 0, D/2, 1, D/2 + 1, ... of ours.
    """
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return tensor
    if tensor.ndim != 2 or len(tensor) % config.head_width:
        raise InputError(
            f"gguf: {name} is {tuple(tensor.shape)}, which is no multiple of the {config.head_width} channels of a "
            "head; the file is damaged"
        )
    halves = (2, config.head_width // 2)
    shape = (len(tensor) // config.head_width, *(reversed(halves) if ours else halves), tensor.shape[1])
    return tensor.reshape(shape).transpose(1, 2).reshape(tensor.shape)


def rope_factors(scaling: RopeScaling, head_width: int, theta: float) -> Tensor:
    """(D/2,): for each pair of channels, the rotary frequency without the scaling over that with it."""
    frequency = theta ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    return (frequency / scaling.scale(frequency)).float()


def infer_scaling(factors: Tensor, theta: float) -> RopeScaling:
    """The scaling that gives these factors (D/2,), inferred from two channels between its thresholds.

    Only the ratios of context and thresholds matter, so the lower threshold is set to 1 rotation, as in Llama 3.
    Raises ValueError if no such scaling gives these factors.
    """
    head_width, most = 2 * len(factors), float(factors.max())
    frequency = theta ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    kept = (1 / factors.double() - 1 / most) / (1 - 1 / most)
    ramp = ((kept > 1e-4) & (kept < 1 - 1e-4)).nonzero().squeeze(1)
    if len(ramp) < 2:
        raise ValueError("its rotary factors have fewer than two values between the extremes to infer a scaling from")
    i, j = int(ramp[0]), int(ramp[-1])
    slope = float((kept[i] - kept[j]) / (frequency[i] - frequency[j]))
    high = 1 + 1 / (slope * float(frequency[j]) - float(kept[j]))
    context = round(slope * (high - 1) * 2 * math.pi)
    for digits, multiple in ((1, 1024), (1, 1), (3, 1), (17, 1)):  # the roundest numbers that give the factors
        scaling = RopeScaling(
            factor=decimal(most),
            low_frequency=1.0,
            high_frequency=round(high, digits),
            original_context=max(1, round(context / multiple) * multiple),
        )
        close = 1e-6 if digits < 17 else 1e-3
        if torch.allclose(rope_factors(scaling, head_width, theta), factors.float(), rtol=close):
            return scaling
    raise ValueError("its rotary factors are not those of Llama 3's scaling")


def architecture_of(config: GPTConfig) -> str:
    """llama.cpp's name for the architecture. Raises InputError if it has none."""
    family = family_of(config)
    if family == "mistral" and config.band >= config.context:
        return "llama"  # a band as wide as the context is dense attention
    if family not in TENSORS:
        raise InputError(f"export: llama.cpp does not support this {family} model; use --format hf")
    return family
