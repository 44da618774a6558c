"""What an adapter file changes outside the blocks: the embedding, the learned positions and the head.

    AdapterFile -> a model with these matrices in place of its own

A LoRA on a tied embedding leaves the head as it was, and one on the head the embedding, as in PEFT's forward pass. The
model is then untied. (PEFT's own merging changes both, so its merged model has other logits.)
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import InputError
from tutelage.model.families import NAMES, Names
from tutelage.model.gpt import GPT, Linear
from tutelage.model.hf_config import family_of
from tutelage.model.peft_file import AdapterFile
from tutelage.model.vocabulary import resize_vocabulary


def their_tables(model: GPT) -> dict[str, str]:
    """{their module: ours} of the matrices outside the blocks; the head counts even if it is tied."""
    return _outside(NAMES[family_of(model.config)])


def _outside(names: Names) -> dict[str, str]:
    return {names[ours][0]: ours for ours in ("embedding", "positions", "head") if ours in names}


def changes_tables(tensors: Iterable[str]) -> bool:
    """Whether a file with tensors of these names changes one of them, so that its model cannot share the base's."""
    ends = {theirs.rsplit(".", 1)[-1] for names in NAMES.values() for theirs in _outside(names)}
    return any(part in ends for name in tensors for part in name.split("."))


@torch.no_grad()
def change_tables(model: GPT, file: AdapterFile) -> GPT:
    """The model with the file's matrices in place; a vocabulary of another size is resized.

    Raises InputError for matrices of other shapes than the base's.
    """
    tables = their_tables(model)
    whole = {tables[module]: matrix for module, matrix in file.whole.items()}
    sizes = {len(matrix) for ours, matrix in whole.items() if ours != "positions"}
    if len(sizes) == 1 and (rows := sizes.pop()) != model.config.vocab_size:
        model = resize_vocabulary(model, rows)
    if model.config.tied and not file.apart:  # one matrix in PEFT: what replaces the one replaces the other
        for one, other in (("embedding", "head"), ("head", "embedding")):
            if one in whole:
                whole.setdefault(other, whole[one])
    for module, (down, up) in file.tables.items():
        ours = tables[module]
        before = whole.get(ours, _weight(model, ours))
        whole[ours] = before.float() + _fitting(module, up @ down, before).to(before.device)
    if model.config.tied and whole.keys() & {"embedding", "head"}:
        model = _untied_if_different(model, whole)
    for ours, matrix in whole.items():
        if ours != "head" or not model.config.tied:
            module_of(model, ours).weight = nn.Parameter(
                _fitting(ours, matrix, _weight(model, ours)).to(_weight(model, ours))
            )
    return model


def _untied_if_different(model: GPT, whole: dict[str, Tensor]) -> GPT:
    """Give the model a head, unless embedding and head stay the same."""
    embedding, head = (whole.get(ours, _weight(model, ours)) for ours in ("embedding", "head"))
    if head.shape == embedding.shape and torch.equal(head.to(embedding), embedding):
        return model
    whole["head"] = head
    model.config = replace(model.config, tied=False)
    model.head = Linear(model.config.width, model.config.vocab_size, bias=False)
    model.head.weight = nn.Parameter(model.embedding.weight.clone())
    return model


def module_of(model: GPT, ours: str) -> Any:
    return model.get_submodule(ours)


def _weight(model: GPT, ours: str) -> Tensor:
    return model.head_weight if ours == "head" else module_of(model, ours).weight


def _fitting(name: str, matrix: Tensor, base: Tensor) -> Tensor:
    if matrix.shape != base.shape:
        raise InputError(
            f"adapter: {name} is {tuple(matrix.shape)} in the file and {tuple(base.shape)} in the base; the adapter "
            "is for another model"
        )
    return matrix
