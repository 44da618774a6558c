"""Conversion between transformers' config.json and the shape of our decoder.

    from_hf_config(config.json) -> GPTConfig;  to_hf_config(GPTConfig) -> config.json

Every setting that would change a number is either read or refused with an error. If one were ignored, the model would
load and silently give wrong numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from tutelage.errors import InputError
from tutelage.kinds import shown
from tutelage.model.config import GPTConfig, RopeScaling
from tutelage.model.hf_fields import check_config, must

Config = Mapping[str, Any]
# The model_type of shapes that no class of transformers has; only this package reads such folders.
OURS = "tutelage"


class NoClassError(InputError):
    """No class of transformers supports this model."""


def from_hf_config(hf: Config) -> GPTConfig:
    """The shape that a config.json describes. Raises InputError for an unsupported family or setting."""
    kind = hf.get("model_type")
    if kind != OURS and not (isinstance(kind, str) and kind in READERS):
        supported = ", ".join(sorted(READERS))
        raise InputError(f"model: family {shown(kind)} is not supported; supported are {supported}")
    problem = f"model: config.json does not describe a {kind} decoder"
    check_config(hf, problem)
    try:
        return _read_own(hf) if kind == OURS else READERS[kind](hf)
    except KeyError as error:
        raise InputError(f"{problem}: it has no {error}; copy the model again") from None
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{problem} ({error})") from None


def to_hf_config(config: GPTConfig) -> dict[str, Any]:
    """A config.json that transformers loads. Raises NoClassError for a shape that none of its classes supports."""
    kind = family_of(config)
    written = WRITERS[kind](config)
    for name, value in written.pop("derived", {}).items():
        if value != getattr(config, name):
            raise NoClassError(
                f"model: {name} is {getattr(config, name)}, {kind} needs {value}; no class fits the model"
            )
    architecture = ARCHITECTURES[kind]
    common = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tied}
    return {"architectures": [architecture], "model_type": kind, **common, **written, **PRECISION}


def to_own_config(config: GPTConfig) -> dict[str, Any]:
    """A config.json in our own format, for shapes that transformers has no class for."""
    common = {"vocab_size": config.vocab_size, "architectures": ["GPTForCausalLM"], "model_type": OURS}
    return asdict(config) | common | PRECISION


def _read_own(hf: Config) -> GPTConfig:
    """The shape in a config.json written by `to_own_config`."""
    known = {field.name for field in fields(GPTConfig)}
    shape = {name: value for name, value in hf.items() if name in known}
    if shape.get("rope_scaling"):
        shape["rope_scaling"] = RopeScaling(**shape["rope_scaling"])
    return GPTConfig(**shape)


def classifier_of(architecture: str) -> str:
    """The class with a scalar head for a language model's: LlamaForSequenceClassification for LlamaForCausalLM."""
    return architecture.replace("LMHeadModel", "ForCausalLM").replace("ForCausalLM", "ForSequenceClassification")


def family_of(config: GPTConfig) -> str:
    """The transformers family that a shape is written as. Raises NoClassError if there is none."""
    modern = config.norm == "rms" and config.mlp == "swiglu" and not (config.learned_positions or config.post_norm)
    classic = config.norm == "layer" and config.mlp == "gelu" and config.learned_positions and config.biases
    if modern and not config.biases:
        if config.band:
            plain = config.band_every == 1 and not (config.qk_norm or config.qkv_bias)
            return "mistral" if plain else _no_class("a band with these other settings")
        if config.qk_norm and config.qkv_bias:
            return _no_class("both normalisation and biases of queries and keys")
        return "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    if classic and not (config.qk_norm or config.kv_heads != config.heads):
        if config.post_norm:
            return _no_class("a band in a GPT-1") if config.band else "openai-gpt"
        return "gpt_neo" if config.band else "gpt2"
    return _no_class("this combination of norm, MLP and positions")


def _no_class(what: str) -> str:
    raise NoClassError(f"model: no class of transformers has {what}; the model can be used here, but not exported")


# ---- Llama, Mistral and Qwen


def _read_modern(hf: Config) -> GPTConfig:
    """The shape of a Llama, Mistral or Qwen."""
    must(hf, "hidden_act", "silu")
    must(hf, "mlp_bias", False)
    must(hf, "attention_bias", False)
    must(hf, "use_sliding_window", False)
    kind, rope = hf["model_type"], _rope(hf)
    heads = hf["num_attention_heads"]
    return GPTConfig(
        vocab_size=hf["vocab_size"],
        width=hf["hidden_size"],
        layers=hf["num_hidden_layers"],
        heads=heads,
        kv_heads=hf.get("num_key_value_heads") or heads,
        head_width=hf.get("head_dim") or hf["hidden_size"] // heads,
        hidden=hf["intermediate_size"],
        context=hf["max_position_embeddings"],
        norm_eps=hf["rms_norm_eps"],
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=_read_scaling(rope),
        qk_norm=kind == "qwen3",
        qkv_bias=kind == "qwen2",
        tied=bool(hf.get("tie_word_embeddings")),
        band=(hf.get("sliding_window") or 0) if kind == "mistral" else 0,
        band_every=1 if kind == "mistral" else 2,
    )


def _rope(hf: Config) -> dict[str, Any]:
    """The rotary settings, from the one field of transformers 5 or the two fields of earlier versions."""
    default = {"rope_theta": hf.get("rope_theta", 10_000.0)}
    return default | dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})


def _read_scaling(rope: Config) -> RopeScaling | None:
    """Llama 3's scaling, or None. Raises InputError for other types."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(f"model: rotary positions of type {kind!r} are not supported; use default or llama3")
    return RopeScaling(
        factor=float(rope["factor"]),
        low_frequency=float(rope["low_freq_factor"]),
        high_frequency=float(rope["high_freq_factor"]),
        original_context=rope["original_max_position_embeddings"],
    )


def _write_modern(config: GPTConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling := config.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency,
            "high_freq_factor": scaling.high_frequency,
            "original_max_position_embeddings": scaling.original_context,
        }
    older = {"rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"}} if config.rope_scaling else {}
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        **older,
        **({"sliding_window": config.band} if config.band else {}),
    }


# ---- OpenAI's GPTs


def _read_gpt2(hf: Config) -> GPTConfig:
    must(hf, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    must(hf, "scale_attn_weights", True)
    must(hf, "scale_attn_by_inverse_layer_idx", False)
    must(hf, "add_cross_attention", False)
    return _classic(hf["n_embd"], hf["n_head"], hf.get("n_inner"), hf["n_positions"], hf["n_layer"], hf)


def _read_gpt1(hf: Config) -> GPTConfig:
    must(hf, "afn", "gelu")  # in this class "gelu" is the tanh approximation
    return _classic(hf["n_embd"], hf["n_head"], None, hf["n_positions"], hf["n_layer"], hf, post_norm=True)


def _read_gpt_neo(hf: Config) -> GPTConfig:
    must(hf, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    layers = hf["num_layers"]
    types = hf["attention_types"]
    size = sum(len(pattern) * times for pattern, times in types)  # compared first, as it may be without measure
    kinds = [kind for pattern, times in types for _ in range(times) for kind in pattern] if size == layers else []
    if kinds != ["global", "local"] * (layers // 2) + ["global"] * (layers % 2):
        raise InputError(
            f"model: attention_types {shown(types)} does not alternate dense and banded layers, as GPT-3 does"
        )
    hidden, context = hf.get("intermediate_size"), hf["max_position_embeddings"]
    return _classic(hf["hidden_size"], hf["num_heads"], hidden, context, layers, hf, band=hf["window_size"])


def _classic(
    width: int, heads: int, hidden: int | None, context: int, layers: int, hf: Config, **more: Any
) -> GPTConfig:
    """The shape of a GPT-1, GPT-2 or GPT-Neo from the fields whose names differ, and the rest from `hf`."""
    return GPTConfig(
        vocab_size=hf["vocab_size"],
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        hidden=hidden or 4 * width,
        context=context,
        norm="layer",
        norm_eps=hf["layer_norm_epsilon"],
        learned_positions=True,
        mlp="gelu",
        biases=True,
        tied=hf.get("tie_word_embeddings") is not False,
        **more,
    )


def _write_gpt2(config: GPTConfig) -> dict[str, Any]:
    return _openai(config) | {"activation_function": "gelu_new", "n_inner": config.hidden}


def _write_gpt1(config: GPTConfig) -> dict[str, Any]:
    return _openai(config) | {"afn": "gelu", "derived": {"hidden": 4 * config.width}}


def _openai(config: GPTConfig) -> dict[str, Any]:
    return {
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_positions": config.context,
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _write_gpt_neo(config: GPTConfig) -> dict[str, Any]:
    kinds = [["global", "local"][i % 2] for i in range(config.layers)]
    return {
        "hidden_size": config.width,
        "num_layers": config.layers,
        "attention_types": [[[kind], 1] for kind in kinds],
        "attention_layers": kinds,
        "num_heads": config.heads,
        "intermediate_size": config.hidden,
        "window_size": config.band,
        "max_position_embeddings": config.context,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new",
        "resid_dropout": 0.0,
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "derived": {"band_every": 2},
    }


PRECISION = {"torch_dtype": "float32", "dtype": "float32"}  # older and newer name of the same field
ARCHITECTURES = {
    "openai-gpt": "OpenAIGPTLMHeadModel",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neo": "GPTNeoForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
READERS: dict[str, Callable[[Config], GPTConfig]] = {
    "openai-gpt": _read_gpt1,
    "gpt2": _read_gpt2,
    "gpt_neo": _read_gpt_neo,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _read_modern),
}
WRITERS: dict[str, Callable[[GPTConfig], dict[str, Any]]] = {
    "openai-gpt": _write_gpt1,
    "gpt2": _write_gpt2,
    "gpt_neo": _write_gpt_neo,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _write_modern),
}
