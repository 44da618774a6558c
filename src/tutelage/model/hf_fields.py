"""Which kind of value each field of a config.json has that we read. Fields of other kinds are refused by name."""

from collections.abc import Mapping
from typing import Any

from tutelage.errors import InputError
from tutelage.kinds import (
    FLAG,
    LARGEST,
    TEXT,
    Kind,
    check_fields,
    either,
    is_finite,
    listed,
    number,
    optional,
    record_of,
    shown,
    whole,
)

SIZE = whole(1, 2**31 - 1)  # of a tensor's axis
DEPTH = whole(1, 10_000)  # layers
FP32 = Kind("a number above 0 that fp32 holds", lambda value: is_finite(value) and 0 < value < 3e38)
ID = whole(-LARGEST)  # some folders have -1 for "none"
ROPE = record_of(
    {
        "rope_theta": number(above=0),
        "rope_type": TEXT,
        "type": TEXT,
        "factor": number(above=0),
        "low_freq_factor": number(above=0),
        "high_freq_factor": number(above=0),
        "original_max_position_embeddings": SIZE,
    }
)
SIZES = (
    "vocab_size hidden_size num_attention_heads intermediate_size max_position_embeddings n_embd n_head n_positions "
    "num_heads"
).split()
KINDS = {
    **dict.fromkeys(SIZES, SIZE),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), DEPTH),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "n_inner"), optional(SIZE)),
    **dict.fromkeys(("sliding_window", "window_size"), optional(whole(0, 2**31 - 1))),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "rope_theta"), number(above=0)),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), optional(ROPE)),
    "model_type": TEXT,
    "architectures": optional(listed(TEXT)),
    "tie_word_embeddings": optional(FLAG),
    "attention_types": listed(listed(either(listed(TEXT), DEPTH))),
    "pad_token_id": optional(ID),
    "eos_token_id": optional(either(ID, listed(ID))),
    "vocabulary_sha256": optional(TEXT),
    "reward_mean": number(),
    "reward_std": optional(number()),
}


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raises InputError for a field of a config.json that has another kind of value than we read there."""
    check_fields(config, KINDS, where)


def must(config: Mapping[str, Any], name: str, *allowed: Any) -> None:
    """Raise InputError if a setting is present and not among the values that our decoder supports."""
    if name in config and config[name] is not None and config[name] not in allowed:
        raise InputError(
            f"model: {name} is {shown(config[name])}; only {' or '.join(map(shown, allowed))} is supported"
        )
