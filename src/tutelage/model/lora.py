"""Low-rank adaptation: h = W0 x + (alpha / r) B A x, with W0 frozen (Hu et al. 2021, section 4.1).

    GPT + LoRAConfig -> add_adapters -> a GPT whose only weights to train are A and B -> merge_adapters -> a plain GPT

A starts random and B at 0, so training starts exactly at the base model. Without its adapters (`adapters_off`) a model
is its base, bit for bit. Ours: a fused matrix of the decoder (query, key and value; gate and up) gets an A and a B for
each of its maps, with one dropout mask for all of them.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.model.gpt import GPT, Linear
from tutelage.model.gradients import AddThin

# {module of a block: the linear maps its matrix contains}, by this package's names.
MAPS = {
    "attention.qkv": ("q", "k", "v"),
    "attention.out": ("out",),
    "mlp.up": ("gate", "up"),
    "mlp.down": ("down",),
}
ALL = ("q", "k", "v", "out", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which linear maps are adapted, and how. Raises ValueError for invalid settings."""

    rank: int = 8
    """Rows of each A and columns of each B: r."""
    alpha: float = 16.0
    """The update is multiplied by alpha / r."""
    targets: tuple[str, ...] = ("q", "v")
    """Maps that get an adapter, out of q, k, v, out, gate, up, down. The paper adapts q and v."""
    dropout: float = 0.0
    """Dropout on the adapter's input in training; 0.1 in the paper's GPT-2 runs."""
    layers: int = 0
    """Number of blocks, from the top, that get adapters; 0 for all."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.targets) - set(ALL)):
            raise ValueError(f"{unknown[0]!r} is not a linear map of a block; choose from {', '.join(ALL)}")
        if self.rank < 1 or not self.targets:
            raise ValueError(f"rank {self.rank} for {len(self.targets)} maps: both must be at least 1")
        if self.layers < 0:
            raise ValueError(f"{self.layers} layers with adapters: give 0 for all, or a number of top layers")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"a dropout of {self.dropout} is invalid; it must be at least 0 and below 1")

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank


class Adapter(nn.Module):
    """Adds (alpha / r) B A x to W0 x, for all maps of one stored matrix: x (..., k), W0 x (..., d) -> (..., d)."""

    def __init__(self, columns: int, rows: Sequence[int], names: Sequence[str], config: LoRAConfig):
        super().__init__()
        self.config = config
        self.rows, self.names = tuple(rows), tuple(names)
        self.adapted = adapted = [name in config.targets for name in names]
        # `down` stacks the A of all adapted maps; `up` is the list of their B.
        self.down = nn.Parameter(torch.zeros(sum(adapted) * config.rank, columns))
        self.up = nn.ParameterList(
            torch.zeros(d, config.rank) for d, chosen in zip(rows, adapted, strict=True) if chosen
        )

    def initialise(self, generator: torch.Generator) -> "Adapter":
        """Draw A uniformly from [-1/sqrt(k), 1/sqrt(k)], as in the paper's code; B stays 0."""
        bound = 1 / math.sqrt(self.down.shape[1])
        with torch.no_grad():
            self.down.copy_(torch.rand(self.down.shape, generator=generator) * 2 * bound - bound)
        return self

    def maps(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(index among the stored maps, A (r, k), B (d, r)) of each adapted map."""
        numbers = [i for i, chosen in enumerate(self.adapted) if chosen]
        yield from zip(numbers, self.down.split(self.config.rank), self.up, strict=True)

    def map(self, name: str) -> tuple[Tensor, Tensor]:
        """A and B of the map with this name."""
        return next((a, b) for i, a, b in self.maps() if self.names[i] == name)

    def spread_up(self) -> Tensor:
        """(sum of d, adapted maps x r): the B of all maps as a block-diagonal matrix; maps without adapter are 0."""
        ups = iter(self.up)
        blocks = [
            next(ups) if chosen else self.down.new_zeros(d, 0)
            for d, chosen in zip(self.rows, self.adapted, strict=True)
        ]
        return torch.block_diag(*blocks)

    def forward(self, x: Tensor, mapped: Tensor) -> Tensor:
        """x (..., k) and `mapped` = W0 x (..., d) -> (..., d), added in place: do not use `mapped` afterwards."""
        up = (self.spread_up() * self.config.scale).to(x.dtype)
        return AddThin.apply(mapped, F.dropout(x, self.config.dropout, self.training), self.down.to(x.dtype), up)

    def update(self) -> Tensor:
        """(alpha / r) B A (sum of d, k), which merging adds to W0."""
        return self.config.scale * self.spread_up() @ self.down


def stored_maps(path: str, linear: nn.Module) -> tuple[str, ...]:
    """Names of the maps in the matrix at this path of a block; an MLP without a gate has only `up`."""
    count = len(getattr(linear.weight, "parts", [0]))
    return MAPS[path][-count:]


def adapted_linears(model: nn.Module) -> Iterator[tuple[str, Linear, Adapter]]:
    """(path, linear map, adapter) for every linear map with an adapter."""
    for path, module in model.named_modules():
        if isinstance(module, Linear) and isinstance(module.adapter, Adapter):
            yield path, module, module.adapter


def add_adapters(model: GPT, config: LoRAConfig, generator: torch.Generator) -> GPT:
    """Freeze the model and add an adapter to every target map. Raises ValueError if the model lacks a target."""
    if config.layers > len(model.blocks):
        raise ValueError(f"adapters in the top {config.layers} layers: this model has {len(model.blocks)} layers")
    model.requires_grad_(False)
    available: set[str] = set()
    for block in model.blocks[-config.layers :]:
        for path in MAPS:
            linear = block.get_submodule(path)
            assert isinstance(linear, Linear)
            names = stored_maps(path, linear)
            available |= set(names)
            if set(names) & set(config.targets):
                rows = getattr(linear.weight, "parts", [linear.out_features])
                adapter = Adapter(linear.in_features, rows, names, config).initialise(generator)
                linear.adapter = adapter.to(linear.weight.device)
    if missing := sorted(set(config.targets) - available):
        choices = ", ".join(name for name in ALL if name in available)
        raise ValueError(f"this model has no map {missing[0]!r}; choose from {choices}")
    return model


@torch.no_grad()
def merge_adapters(model: GPT) -> GPT:
    """Set W to W0 + (alpha / r) B A, in the precision of the weights, and remove the adapters.

    The merged matrices are new tensors, because other models may share W0.
    """
    for _, linear, adapter in list(adapted_linears(model)):
        merged = nn.Parameter(linear.weight + adapter.update().to(linear.weight), linear.weight.requires_grad)
        if hasattr(linear.weight, "parts"):
            merged.parts = linear.weight.parts  # type: ignore[attr-defined]
        linear.weight, linear.adapter = merged, None
    return model


def shallow_copy(model: GPT) -> GPT:
    """A copy that shares the original's frozen matrices, if they are in the compute precision; the rest is copied."""
    frozen = (p for p in model.parameters() if p.ndim == 2 and not p.requires_grad and p.dtype == model.compute_dtype)
    copied = copy.deepcopy(model, {id(p): p for p in frozen})
    for linear, other in zip(model.modules(), copied.modules(), strict=True):
        if isinstance(linear, Linear) and isinstance(other, Linear) and hasattr(linear.weight, "parts"):
            other.weight.parts = linear.weight.parts  # type: ignore[attr-defined]  # lost when a parameter is copied
    return copied


def without_adapters(model: GPT) -> GPT:
    """The base of an adapted model, for another role: shares the frozen matrices, has no adapter."""
    with adapters_off(model):
        return shallow_copy(model)


def frozen_depth(model: GPT) -> int:
    """Number of lowest blocks that are the unchanged base: without trainable parameters or adapters.

    0 if anything outside the blocks is trained, such as the embedding.
    """
    if any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("blocks.")):
        return 0
    for i, block in enumerate(model.blocks):
        if any(p.requires_grad or ".adapter." in name for name, p in block.named_parameters()):
            return i
    return len(model.blocks)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Context manager: within it the model computes as its base, without adapters."""
    adapted = [(linear, adapter) for _, linear, adapter in adapted_linears(model)]
    try:
        for linear, _ in adapted:
            linear.adapter = None
        yield
    finally:
        for linear, adapter in adapted:
            linear.adapter = adapter
