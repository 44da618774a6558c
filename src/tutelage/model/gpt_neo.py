"""GPT-Neo's weights and ours.

Its attention has no factor 1/sqrt(D), and its query, key and value maps have no biases.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage.model.gpt import GPT
from tutelage.model.hf_config import NoClassError, family_of


def query_scale(model: GPT) -> float:
    """Factor from their query weights to ours."""
    return model.config.head_width**0.5 if family_of(model.config) == "gpt_neo" else 1.0


def to_gpt_neo(weights: dict[str, Tensor], model: GPT) -> dict[str, Tensor]:
    """Our weights as GPT-Neo stores them. Raises NoClassError for biases that it lacks."""
    written = {}
    for name, tensor in weights.items():
        if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            if tensor.any():
                raise NoClassError(
                    f"model: {name} is not 0; GPT-Neo, the only class with GPT-3's bands, lacks this bias"
                )
            continue
        written[name] = tensor / query_scale(model) if name.endswith("q_proj.weight") else tensor
    return written


def from_gpt_neo(weights: Mapping[str, Tensor], model: GPT) -> dict[str, Tensor]:
    """GPT-Neo's weights scaled as ours, with biases of 0 added."""
    read = dict(weights)
    for name in weights:
        if name.endswith("q_proj.weight"):
            read[name] = weights[name] * query_scale(model)
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            read[name.removesuffix("weight") + "bias"] = torch.zeros(weights[name].shape[:1])
    return read
