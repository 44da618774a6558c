"""LoRA adapters in the format of the library PEFT.

    to_peft(adapted GPT) -> adapter_config.json, {name: tensor};  from_peft(plain GPT, config, tensors) -> adapted GPT

A module of theirs may hold several of our maps: GPT-2's `c_attn` is query, key and value. Our adapters of these maps
are written as one, with the A stacked and the B block-diagonal, which is the same function. When such an adapter is
read, each of our maps gets all of A and its own rows of B. Other scalings (rank-stabilised, or per module) are
multiplied into B.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.model.families import INPUT_FIRST, NAMES
from tutelage.model.gpt import GPT
from tutelage.model.gpt_neo import query_scale
from tutelage.model.hf_config import family_of
from tutelage.model.lora import ALL, MAPS, Adapter, LoRAConfig, adapted_linears, add_adapters, stored_maps
from tutelage.model.peft_file import PREFIX, Pair, read_names
from tutelage.model.peft_tables import change_tables, their_tables


def to_peft(model: GPT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(adapter_config.json without the base model's name, {name: tensor}). The model must have adapters."""
    family = family_of(model.config)
    names, pairs, ranks = NAMES[family], {}, {}
    config = next(adapter.config for _, _, adapter in adapted_linears(model))
    for path, _, adapter in adapted_linears(model):
        _, layer, ours = path.split(".", 2)
        for their, (down, up) in _pairs(adapter, names[ours]):
            up = up / query_scale(model) if their.endswith("q_proj") else up
            pairs[f"{names['blocks'][0]}.{layer}.{their}"] = down, up
            ranks[their] = len(down)
    other = {their: rank for their, rank in ranks.items() if rank != config.rank}
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(ranks),
        "rank_pattern": other,
        "alpha_pattern": {their: config.scale * rank for their, rank in other.items()},
        "fan_in_fan_out": family in INPUT_FIRST,
        "bias": "none",
        "inference_mode": True,
    }
    if config.layers:
        written["layers_to_transform"] = list(range(len(model.blocks) - config.layers, len(model.blocks)))
        written["layers_pattern"] = names["blocks"][0].rsplit(".", 1)[-1]
    tensors = {}
    for module, (down, up) in pairs.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = down, up
    return written, tensors


def _pairs(adapter: Adapter, theirs: tuple[str, ...]) -> list[tuple[str, Pair]]:
    """(their module, its A and B) for one adapter of ours; one module of theirs may hold all its maps."""
    if len(theirs) == len(adapter.rows):
        return [(theirs[i], (down.detach(), up.detach())) for i, down, up in adapter.maps()]
    return [(theirs[0], (adapter.down.detach(), adapter.spread_up().detach()))]


def from_peft(model: GPT, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
    """Freeze the model and add the adapters. Raises InputError for anything but a plain LoRA of this model.

    Changes to the embedding, the positions and the head are merged at once. A tied head does not follow a LoRA on the
    embedding, as in PEFT, so the model is then untied.
    """
    try:
        file = read_names(config, tensors, set(their_tables(model)))
    except (KeyError, ValueError, TypeError, ArithmeticError, AttributeError, re.error) as error:
        raise InputError(f"adapter: adapter_config.json does not describe a LoRA ({error})") from None
    modules = _their_modules(model)
    if unknown := sorted(file.linears.keys() - modules.keys()):
        raise InputError(f"adapter: the base model has no linear map {unknown[0]}; the adapter is for another model")
    model = change_tables(model, file).requires_grad_(False)
    return _add_linears(model, file.linears, modules) if file.linears else model


def _add_linears(model: GPT, pairs: Mapping[str, Pair], modules: Mapping[str, tuple[str, tuple[str, ...]]]) -> GPT:
    rank = max(len(down) for down, _ in pairs.values())
    targets = tuple(name for name in ALL if any(name in modules[module][1] for module in pairs))
    lowest = min(int(modules[module][0].split(".")[1]) for module in pairs)
    unscaled = LoRAConfig(rank=rank, alpha=rank, targets=targets, layers=len(model.blocks) - lowest)
    add_adapters(model, unscaled, torch.Generator())
    adapters = {path: adapter for path, _, adapter in adapted_linears(model)}
    for adapter in adapters.values():
        torch.nn.init.zeros_(adapter.down)  # maps that the file does not adapt in this layer must add nothing
    for module, (down, up) in pairs.items():
        path, names = modules[module]
        up = up * query_scale(model) if module.endswith("q_proj") else up
        _copy(module, (down, up), [adapters[path].map(name) for name in names])
    return model


def _their_modules(model: GPT) -> dict[str, tuple[str, tuple[str, ...]]]:
    """{their module: (path of our stored matrix, the maps of that matrix it corresponds to)}."""
    names = NAMES[family_of(model.config)]
    modules = {}
    for layer, block in enumerate(model.blocks):
        for path in MAPS:
            maps = stored_maps(path, block.get_submodule(path))
            theirs = names[path]
            for i, their in enumerate(theirs):
                corresponding = maps if len(theirs) == 1 else (maps[i],)
                modules[f"{names['blocks'][0]}.{layer}.{their}"] = (f"blocks.{layer}.{path}", corresponding)
    return modules


@torch.no_grad()
def _copy(module: str, pair: Pair, maps: Sequence[Pair]) -> None:
    """Copy all of their A and its own rows of their B into each of our maps; ranks beyond theirs stay 0."""
    down, up = pair
    rows, columns = [len(b) for _, b in maps], maps[0][0].shape[1]
    if down.shape[1] != columns or len(up) != sum(rows):
        raise InputError(
            f"adapter: {module} maps {down.shape[1]} channels to {len(up)}, in the base {columns} to {sum(rows)}; "
            "the adapter is for another model"
        )
    for (a, b), part in zip(maps, up.split(rows), strict=True):
        a[: len(down)] = down
        b[:, : len(down)] = part
