"""The tensors of a PEFT file by what they are, whichever library wrote the names.

    {name: tensor} -> LoRA matrices per module, and whole matrices of the embedding, the positions or the head

PEFT puts `base_model.model.` before each name and leaves the adapter's name out. `transformers` writes and reads names
without that prefix, and a plain state dict keeps the adapter's name, `lora_A.default.weight`. All mean the same here. A
LoRA on the embedding stores the base's whole embedding beside it, and so does a vocabulary that was resized.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tutelage.errors import InputError
from tutelage.kinds import COUNT, FLAG, PLACE, TEXT, check_fields, listed, mapped, number, optional, shown
from tutelage.model.floats import check_dtype, check_finite

PREFIX = "base_model.model."
REPEATED = re.compile(r"(?<!\()[*+?{]")  # in a regular expression, not the ? of (?:
MOST_REPEATED, LONGEST = 3, 200  # per pattern; characters. Beyond these a pattern can take for ever
KINDS = {
    "rank_pattern": optional(mapped(COUNT)),
    "alpha_pattern": optional(mapped(number())),
    **dict.fromkeys(("use_rslora", "use_dora"), optional(FLAG)),
    "r": COUNT,
    "lora_alpha": number(),
    "modules_to_save": optional(listed(TEXT)),
    "base_model_name_or_path": optional(PLACE),
    "peft_type": optional(TEXT),
    "bias": optional(TEXT),
}
Pair = tuple[Tensor, Tensor]  # A (r, k), B (d, r)
LORA = re.compile(r"(.+?)\.lora_(embedding_)?([AB])(?:\.(?!weight$)([^.]+))?(?:\.weight)?")
WHOLE = re.compile(r"(.+?)(?:\.(original_module|base_layer|modules_to_save)(?:\.(?!weight$)([^.]+))?)?\.weight")


@dataclass
class AdapterFile:
    """What an adapter file holds, by their names of modules."""

    linears: dict[str, Pair] = field(default_factory=dict)  # A and B times its scale, of linear maps
    tables: dict[str, Pair] = field(default_factory=dict)  # of the embedding, the positions or the head
    whole: dict[str, Tensor] = field(default_factory=dict)  # matrices that replace the base's
    apart: set[str] = field(default_factory=set)  # those of `whole` that a tied partner does not follow


def read_names(config: Mapping[str, Any], tensors: Mapping[str, Tensor], tables: set[str]) -> AdapterFile:
    """Sort the tensors. `tables` are their names of embedding, positions and head.

    Raises InputError for other kinds of adapters, for two adapters in one file and for incomplete pairs.
    """
    check_fields(config, KINDS, "adapter: adapter_config.json does not describe a LoRA")
    refuse_other_kinds(config)
    matrices: dict[str, dict[str, Tensor]] = {}
    file, adapters = AdapterFile(), set()
    for name, tensor in tensors.items():
        short = name.removeprefix(PREFIX)
        check_dtype(name, tensor)
        check_finite(name, tensor)
        if match := LORA.fullmatch(short):
            module, embedding, side, adapter = match.groups()
            # An embedding's A is (r, tokens) and its B (C, r): their product is the update transposed.
            side = {"A": "B", "B": "A"}[side] if embedding else side
            matrices.setdefault(module, {})[side] = tensor.float().T if embedding else tensor.float()
        elif (match := WHOLE.fullmatch(short)) and match[1] in tables:
            module, kind, adapter = match.groups()
            if kind == "original_module":
                continue
            file.whole[module] = tensor.float()
            if kind == "modules_to_save" or module.rsplit(".", 1)[-1] in (config.get("modules_to_save") or []):
                file.apart.add(module)
        else:
            raise InputError(f"adapter: {name} is not a LoRA matrix of a linear map; only these are supported")
        adapters |= {adapter} - {None}
    if len(adapters) > 1:
        raise InputError(f"adapter: the file holds {len(adapters)} adapters, {', '.join(sorted(adapters))}; save one")
    for module, pair in matrices.items():
        (file.tables if module in tables else file.linears)[module] = _scaled(config, module, pair)
    if not matrices and not file.whole:
        raise InputError("adapter: the file contains no LoRA matrices; copy it again")
    return file


def refuse_other_kinds(config: Mapping[str, Any]) -> None:
    for name, plain in {"peft_type": "LORA", "bias": "none", "use_dora": False}.items():
        if config.get(name, plain) not in (plain, None):
            raise InputError(
                f"adapter: {name} is {shown(config[name])}; only plain LoRA is supported ({name} {plain!r})"
            )
    initial = config.get("init_lora_weights")
    if str(initial).startswith(("pissa", "olora", "corda", "loftq")):
        raise InputError(f"adapter: {shown(initial)} changes the base model, too; only plain LoRA is supported")


def _scaled(config: Mapping[str, Any], module: str, pair: Mapping[str, Tensor]) -> Pair:
    if pair.keys() != {"A", "B"} or pair["A"].ndim != 2 or pair["B"].shape[1:] != pair["A"].shape[:1]:
        raise InputError(f"adapter: A and B of {module} are incomplete or do not match; copy the adapter again")
    return pair["A"], pair["B"] * _scale(config, module)


def _applies(pattern: str, module: str) -> bool:
    """As in PEFT: whether the module's name ends with a match of the regular expression."""
    if len(pattern) > LONGEST or len(REPEATED.findall(pattern)) > MOST_REPEATED or re.search(r"\)[*+?{]", pattern):
        raise InputError(f"adapter: the pattern {shown(pattern)} is too intricate; name the modules instead")
    return len(module) <= LONGEST and re.fullmatch(rf"(.*\.)?({pattern})", module) is not None


def _scale(config: Mapping[str, Any], module: str) -> float:
    """alpha / r, or alpha / sqrt(r) if rank-stabilised, where patterns may set alpha and r of single modules."""
    alpha, rank = (
        next(
            (value for key, value in (config.get(pattern) or {}).items() if _applies(key, module)),
            config[default],
        )
        for pattern, default in (("alpha_pattern", "lora_alpha"), ("rank_pattern", "r"))
    )
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
