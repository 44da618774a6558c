"""Our decoder's weights under the names that other libraries know.

    GPT <-> {name: tensor}, as transformers' class of its family has them

One table per family: our name of a part -> theirs. Where we store several of their maps as one (query, key and value;
gate and up) a part has several names, and its rows are split. OpenAI's classes store linear maps input first.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.hf_config import NoClassError, family_of

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
    "openai-gpt": GPT1, "gpt2": GPT2, "gpt_neo": GPT_NEO, "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA,
    "qwen3": LLAMA,
}  # fmt: skip
INPUT_FIRST = ("openai-gpt", "gpt2")


def named_views(model: GPT, names: Names, input_first: bool = False) -> dict[str, Tensor]:
    """{their name: view into our weight}, so that one table serves reading and writing. A tied head is left out."""
    views: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        path, kind = name.rsplit(".", 1)
        prefix = ""
        if path.startswith("blocks."):
            _, layer, path = path.split(".", 2)
            prefix = f"{names['blocks'][0]}.{layer}."
        theirs = names[path]
        turned = input_first and bool(prefix) and parameter.ndim == 2
        for their, part in zip(theirs, _parts(model, path, parameter.detach(), len(theirs)), strict=True):
            views[f"{prefix}{their}.{kind}"] = part.T if turned else part
    return views


def _parts(model: GPT, path: str, parameter: Tensor, count: int) -> tuple[Tensor, ...]:
    if count == 1:
        return (parameter,)
    c = model.config
    rows = [c.heads * c.head_width, *[c.kv_heads * c.head_width] * 2] if path == "attention.qkv" else [c.hidden] * 2
    return parameter.split(rows)


def to_hf_weights(model: GPT) -> dict[str, Tensor]:
    """{Hugging Face name: tensor}. Raises NoClassError for weights that their class has no place for."""
    weights = _hf_views(model)
    return _to_gpt_neo(weights, model) if family_of(model.config) == "gpt_neo" else weights


def _hf_views(model: GPT) -> dict[str, Tensor]:
    family = family_of(model.config)
    return named_views(model, NAMES[family], family in INPUT_FIRST)


def own_views(model: GPT) -> dict[str, Tensor]:
    """{our name: view}, for folders of our own format."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_hf_weights(model: GPT, weights: Mapping[str, Tensor]) -> None:
    """Copy named tensors into the decoder. Raises InputError unless names and shapes fit exactly."""
    weights = _current_names(model, weights)
    if family_of(model.config) == "gpt_neo":
        weights = _from_gpt_neo(weights, model)
    copy_weights(_hf_views(model), weights)


LONGEST = 2**20  # tokens of context: a position costs memory before the first token is read


def build(
    config: GPTConfig, fill: Callable[[GPT], None], tensors: int, dtype: torch.dtype, frozen: bool = False
) -> GPT:
    """A decoder of this shape, filled. The shape is held against the weights before any memory is taken for it.

    `frozen` matrices are of the compute precision from the start: never is all of the model there in fp32.

    Raises InputError for a configuration that lies: `fill` refuses what does not fit, and each layer has tensors.
    """
    if config.layers > tensors or config.context > LONGEST:
        raise InputError(
            f"model: {config.layers} layers and a context of {config.context} do not go with {tensors} tensors and "
            f"at most {LONGEST} positions; the configuration is not this model's"
        )
    try:
        with torch.device("meta"):  # a rotary table says nothing of shapes, so that a short one will do
            probe = GPT(config if config.learned_positions else replace(config, context=1))
    except (RuntimeError, OverflowError) as error:
        raise InputError(f"model: no model has such a shape ({str(error).splitlines()[0]})") from None
    fill(probe)
    model = GPT(config, dtype)
    for matrix in (parameter for parameter in model.parameters() if frozen and parameter.ndim == 2):
        matrix.data = torch.empty_like(matrix, dtype=dtype)
    fill(model)
    return model


@torch.no_grad()
def copy_weights(targets: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Fill the targets with the weights of the same names. Raises InputError unless names and shapes fit exactly."""
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
        target.copy_(weights[name])


def _current_names(model: GPT, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Older OpenAI folders lack the prefix and carry attention masks; a tied head may stand there a second time."""
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


# GPT-Neo multiplies queries and keys without the usual 1/sqrt(D), and its three maps have no biases.


def query_scale(model: GPT) -> float:
    """What their queries are multiplied by to be ours."""
    return model.config.head_width**0.5 if family_of(model.config) == "gpt_neo" else 1.0


def _to_gpt_neo(weights: dict[str, Tensor], model: GPT) -> dict[str, Tensor]:
    written = {}
    for name, tensor in weights.items():
        if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            if tensor.any():
                raise NoClassError(f"model: {name} is not 0; GPT-Neo, the only class with bands, has no such bias")
            continue
        written[name] = tensor / query_scale(model) if name.endswith("q_proj.weight") else tensor
    return written


def _from_gpt_neo(weights: Mapping[str, Tensor], model: GPT) -> dict[str, Tensor]:
    read = dict(weights)
    for name in weights:
        if name.endswith("q_proj.weight"):
            read[name] = weights[name] * query_scale(model)
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            read[name.removesuffix("weight") + "bias"] = torch.zeros(len(weights[name]))
    return read
