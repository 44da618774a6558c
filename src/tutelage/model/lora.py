"""Low-rank adaptation: h = W0 x + (alpha / r) B A x, with W0 frozen (Hu et al. 2021, section 4.1).

    GPT + LoRAConfig -> add_adapters -> a GPT whose only weights to train are A and B -> merge_adapters -> a plain GPT

A starts random and B at 0, so that training begins at the base model exactly; without its adapters (`adapters_off`) a
model is its base, bit for bit. Ours: what the decoder stores as one matrix (query, key and value; gate and up) has an
A and a B per map, and they share one dropout mask.
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

# The maps of a block by the names this package gives them, and where the decoder stores them.
MAPS = {
    "attention.qkv": ("q", "k", "v"),
    "attention.out": ("out",),
    "mlp.up": ("gate", "up"),
    "mlp.down": ("down",),
}
ALL = ("q", "k", "v", "out", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which maps are adapted, and how. Raises ValueError for what no adapter can be."""

    rank: int = 8
    """Rows of A and columns of B: r."""
    alpha: float = 16.0
    """The update is multiplied by alpha / r."""
    targets: tuple[str, ...] = ("q", "v")
    """Maps that get an adapter, of q, k, v, out, gate, up, down. The paper adapts q and v."""
    dropout: float = 0.0
    """Share of the adapter's inputs that are dropped in training; .1 in the paper's GPT-2 runs."""
    layers: int = 0
    """Only the top blocks, this many, get adapters; 0 is all of them."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.targets) - set(ALL)):
            raise ValueError(f"{unknown[0]!r} is no map of a block; they are {', '.join(ALL)}")
        if self.rank < 1 or not self.targets:
            raise ValueError(f"rank {self.rank} on {len(self.targets)} maps adapts nothing")
        if self.layers < 0:
            raise ValueError(f"adapters in {self.layers} layers: give 0 for all, or how many of the top ones")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"a dropout of {self.dropout} is no share between 0 and 1")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Adapter(nn.Module):
    """W0 x + (alpha / r) B A x for the maps of one stored matrix: (..., k), (..., d) -> (..., d), given W0 x."""

    def __init__(self, columns: int, rows: Sequence[int], names: Sequence[str], config: LoRAConfig):
        super().__init__()
        self.config = config
        self.rows, self.names = tuple(rows), tuple(names)
        self.adapted = adapted = [name in config.targets for name in names]
        self.down = nn.Parameter(torch.zeros(sum(adapted) * config.rank, columns))  # the maps' A, one below the other
        self.up = nn.ParameterList(
            torch.zeros(d, config.rank) for d, chosen in zip(rows, adapted, strict=True) if chosen
        )

    def initialise(self, generator: torch.Generator) -> "Adapter":
        """A uniform within 1/sqrt(k), as the paper's code draws it; B is 0."""
        bound = 1 / math.sqrt(self.down.shape[1])
        with torch.no_grad():
            self.down.copy_(torch.rand(self.down.shape, generator=generator) * 2 * bound - bound)
        return self

    def maps(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(which of the stored maps, its A (r, k), its B (d, r))."""
        numbers = [i for i, chosen in enumerate(self.adapted) if chosen]
        yield from zip(numbers, self.down.split(self.config.rank), self.up, strict=True)

    def map(self, name: str) -> tuple[Tensor, Tensor]:
        """A and B of the map with this name."""
        return next((a, b) for i, a, b in self.maps() if self.names[i] == name)

    def spread_up(self) -> Tensor:
        """(sum of d, maps x r): the maps' B along a diagonal of blocks, empty ones where there is no adapter."""
        ups = iter(self.up)
        blocks = [
            next(ups) if chosen else self.down.new_zeros(d, 0)
            for d, chosen in zip(self.rows, self.adapted, strict=True)
        ]
        return torch.block_diag(*blocks)

    def forward(self, x: Tensor, mapped: Tensor) -> Tensor:
        """`mapped` itself is what is added to: whoever gave it must not need it any more."""
        up = (self.spread_up() * self.config.scale).to(x.dtype)
        return AddThin.apply(mapped, F.dropout(x, self.config.dropout, self.training), self.down.to(x.dtype), up)

    def update(self) -> Tensor:
        """(sum of d, k): what merging adds to W0."""
        return self.config.scale * self.spread_up() @ self.down


def stored_maps(path: str, linear: nn.Module) -> tuple[str, ...]:
    """Names of the maps that are stored as one at this path of a block; an MLP without a gate has only `up`."""
    count = len(getattr(linear.weight, "parts", [0]))
    return MAPS[path][-count:]


def adapted_linears(model: nn.Module) -> Iterator[tuple[str, Linear, Adapter]]:
    """(path, linear map, its adapter) for all that have one."""
    for path, module in model.named_modules():
        if isinstance(module, Linear) and isinstance(module.adapter, Adapter):
            yield path, module, module.adapter


def add_adapters(model: GPT, config: LoRAConfig, generator: torch.Generator) -> GPT:
    """Freeze the model and give every target an adapter. Raises ValueError where the model has no such map."""
    if config.layers > len(model.blocks):
        raise ValueError(f"adapters in the top {config.layers} layers: this model has {len(model.blocks)}")
    model.requires_grad_(False)
    found: set[str] = set()
    for block in model.blocks[-config.layers :]:
        for path in MAPS:
            linear = block.get_submodule(path)
            assert isinstance(linear, Linear)
            names = stored_maps(path, linear)
            found |= set(names)
            if set(names) & set(config.targets):
                rows = getattr(linear.weight, "parts", [linear.out_features])
                adapter = Adapter(linear.in_features, rows, names, config).initialise(generator)
                linear.adapter = adapter.to(linear.weight.device)
    if missing := sorted(set(config.targets) - found):
        raise ValueError(f"this model has no map {missing[0]!r}; it has {', '.join(n for n in ALL if n in found)}")
    return model


@torch.no_grad()
def merge_adapters(model: GPT) -> GPT:
    """W <- W0 + (alpha / r) B A in the weights' own precision; the adapters go, and what is left is a plain model.

    The merged matrices are new ones: W0 may be another model's as well.
    """
    for _, linear, adapter in list(adapted_linears(model)):
        merged = nn.Parameter(linear.weight + adapter.update().to(linear.weight), linear.weight.requires_grad)
        if hasattr(linear.weight, "parts"):
            merged.parts = linear.weight.parts  # type: ignore[attr-defined]
        linear.weight, linear.adapter = merged, None
    return model


def sharing(model: GPT) -> GPT:
    """A copy with the original's own frozen matrices, where these are in the compute precision: none is there twice."""
    frozen = (p for p in model.parameters() if p.ndim == 2 and not p.requires_grad and p.dtype == model.compute_dtype)
    copied = copy.deepcopy(model, {id(p): p for p in frozen})
    for linear, other in zip(model.modules(), copied.modules(), strict=True):
        if isinstance(linear, Linear) and isinstance(other, Linear) and hasattr(linear.weight, "parts"):
            other.weight.parts = linear.weight.parts  # type: ignore[attr-defined]  # copying a parameter loses it
    return copied


def without_adapters(model: GPT) -> GPT:
    """The base of an adapted model for another role: the same frozen matrices, no adapter."""
    with adapters_off(model):
        return sharing(model)


def frozen_depth(model: GPT) -> int:
    """How many of the lowest blocks are the base's own: nothing to learn in them or the embedding, and no adapter."""
    if any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("blocks.")):
        return 0
    for i, block in enumerate(model.blocks):
        if any(p.requires_grad or ".adapter." in name for name, p in block.named_parameters()):
            return i
    return len(model.blocks)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within this, the model is its base."""
    adapted = [(linear, adapter) for _, linear, adapter in adapted_linears(model)]
    try:
        for linear, _ in adapted:
            linear.adapter = None
        yield
    finally:
        for linear, adapter in adapted:
            linear.adapter = adapter
