"""The decoder's weights under the names of transformers' classes.

    GPT <-> {name: tensor}, as in the class of its model family

One table per family maps our name of a module to theirs. A fused matrix of ours (query, key and value; gate and up) has
several names in their libraries, and its rows are split among them. OpenAI's classes store linear maps transposed,
(in, out).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.model.config import GPTConfig
from tutelage.model.floats import check_dtype, check_finite
from tutelage.model.gpt import GPT
from tutelage.model.gpt_neo import from_gpt_neo, to_gpt_neo
from tutelage.model.hf_config import family_of

Names = dict[str, tuple[str, ...]]

LLAMA: Names = {
    "embedding": ("model.embed_tokens",),
    "final_norm": ("model.norm",),
    "head": ("lm_head",),
    "blocks": ("model.layers",),
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "attention.out": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
GPT2: Names = {
    "embedding": ("transformer.wte",),
    "positions": ("transformer.wpe",),
    "final_norm": ("transformer.ln_f",),
    "head": ("lm_head",),
    "blocks": ("transformer.h",),
    "attention_norm": ("ln_1",),
    "attention.qkv": ("attn.c_attn",),
    "attention.out": ("attn.c_proj",),
    "mlp_norm": ("ln_2",),
    "mlp.up": ("mlp.c_fc",),
    "mlp.down": ("mlp.c_proj",),
}
GPT1: Names = GPT2 | {"embedding": ("transformer.tokens_embed",), "positions": ("transformer.positions_embed",)}
GPT_NEO: Names = GPT2 | {
    "attention.qkv": ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    "attention.out": ("attn.attention.out_proj",),
}
NAMES: dict[str, Names] = {
    "openai-gpt": GPT1,
    "gpt2": GPT2,
    "gpt_neo": GPT_NEO,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}
INPUT_FIRST = ("openai-gpt", "gpt2")  # families whose linear maps are stored as (in, out)


def named_views(model: GPT, names: Names, input_first: bool = False) -> dict[str, Tensor]:
    """{their name: view of our weight}, for reading and writing. A tied head is left out."""
    views: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        path, kind = name.rsplit(".", 1)
        prefix = ""
        if path.startswith("blocks."):
            _, layer, path = path.split(".", 2)
            prefix = f"{names['blocks'][0]}.{layer}."
        theirs = names[path]
        transposed = input_first and bool(prefix) and parameter.ndim == 2
        for their, part in zip(theirs, _parts(model, path, parameter.detach(), len(theirs)), strict=True):
            views[f"{prefix}{their}.{kind}"] = part.T if transposed else part
    return views


def _parts(model: GPT, path: str, parameter: Tensor, count: int) -> tuple[Tensor, ...]:
    """The fused matrix or bias at this path, split into `count` parts."""
    if count == 1:
        return (parameter,)
    c = model.config
    rows = [c.heads * c.head_width, *[c.kv_heads * c.head_width] * 2] if path == "attention.qkv" else [c.hidden] * 2
    return parameter.split(rows)


def to_hf_weights(model: GPT) -> dict[str, Tensor]:
    """{transformers' name: tensor}. Raises NoClassError for weights that their class cannot store."""
    weights = _hf_views(model)
    return to_gpt_neo(weights, model) if family_of(model.config) == "gpt_neo" else weights


def _hf_views(model: GPT) -> dict[str, Tensor]:
    family = family_of(model.config)
    return named_views(model, NAMES[family], family in INPUT_FIRST)


def own_views(model: GPT) -> dict[str, Tensor]:
    """{our name: view}, for folders in our own format."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_hf_weights(model: GPT, weights: Mapping[str, Tensor]) -> None:
    """Copy tensors with transformers' names into the decoder. Raises InputError unless names and shapes fit exactly."""
    weights = _current_names(model, weights)
    if family_of(model.config) == "gpt_neo":
        weights = from_gpt_neo(weights, model)
    copy_weights(_hf_views(model), weights)


def with_own_head(config: GPTConfig, weights: Mapping[str, Tensor]) -> GPTConfig:
    """The shape without the tie, if the file holds a head other than the embedding: transformers keeps both, too."""
    if not config.tied or (head := weights.get("lm_head.weight")) is None:
        return config
    name = NAMES[family_of(config)]["embedding"][0] + ".weight"
    embedding = weights.get(name, weights.get(name.removeprefix("transformer.")))
    same = embedding is None or (head.shape == embedding.shape and torch.equal(head, embedding))
    return config if same else replace(config, tied=False)


# Longest context accepted, in tokens. Each position takes memory in the rotary table or position embedding.
LONGEST = 2**20


def build(
    config: GPTConfig,
    fill: Callable[[GPT], None],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    frozen: bool = False,
) -> GPT:
    """A decoder of this shape, with weights copied in by `fill`.

    The shape is first checked against the weights without allocating memory, by filling a model on the meta device.
    With `frozen`, matrices are in the compute precision from the start, so the model is never in memory in fp32.
    Raises InputError for a configuration that does not match `weights`, the content of the file.
    """
    if config.layers > len(weights):
        raise InputError(
            f"model: the configuration has {config.layers} layers, the weights have only {len(weights)} tensors; "
            "they come from different models"
        )
    largest = max(weight.numel() for weight in weights.values())
    channels = config.heads * config.head_width
    if (wide := max(config.vocab_size, config.width, config.hidden, channels)) > largest:
        raise InputError(
            f"model: the configuration asks for an axis of {wide}, the largest of the weights has {largest} numbers; "
            "they come from different models"
        )
    if config.context > LONGEST:
        raise InputError(f"model: the configuration has {config.context} positions; at most {LONGEST} are supported")
    try:
        with torch.device("meta"):
            # The rotary table is no weight, so a short one is enough.
            probe = GPT(config if config.learned_positions else replace(config, context=1))
    except (RuntimeError, OverflowError) as error:
        raise InputError(f"model: the configuration is not possible ({str(error).splitlines()[0]})") from None
    fill(probe)
    model = GPT(config, dtype)
    for matrix in (parameter for parameter in model.parameters() if frozen and parameter.ndim == 2):
        matrix.data = torch.empty_like(matrix, dtype=dtype)
    fill(model)
    return model


@torch.no_grad()
def copy_weights(targets: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copy each weight into the target of its name. Raises InputError unless names and shapes fit exactly."""
    missing, extra = sorted(targets.keys() - weights.keys()), sorted(weights.keys() - targets.keys())
    if missing or extra:
        raise InputError(
            f"model: the weights lack {len(missing)} tensors ({', '.join(missing[:2])}) and have {len(extra)} unknown "
            f"ones ({', '.join(extra[:2])}); the configuration and the weights come from different models"
        )
    for name, target in targets.items():
        if weights[name].shape != target.shape:
            raise InputError(
                f"model: {name} is {tuple(weights[name].shape)}, the configuration asks for {tuple(target.shape)}; "
                "they come from different models"
            )
        check_dtype(name, weights[name])
        target.copy_(weights[name])
        if not target.is_meta:
            check_finite(name, target)


def _current_names(model: GPT, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the current names of transformers.

    Older OpenAI folders lack a prefix and contain attention masks, and a tied head may be stored a second time.
    """
    openai = family_of(model.config) in ("openai-gpt", "gpt2", "gpt_neo")
    named = {}
    for name, tensor in weights.items():
        if openai and not name.startswith(("transformer.", "lm_head.")):
            name = f"transformer.{name}"
        if openai and name.endswith((".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")):
            continue
        named[name] = tensor
    if model.config.tied and "lm_head.weight" in named:
        embedding = named.get(NAMES[family_of(model.config)]["embedding"][0] + ".weight")
        if embedding is not None and torch.equal(named["lm_head.weight"], embedding):
            del named["lm_head.weight"]
    return named
