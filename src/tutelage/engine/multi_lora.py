"""Several adapters over one frozen base at once: each token of a pass goes through its own.

    Adapters(base).add(name, adapted) ...;  with adapters.among({name: which of the N tokens}): trunk(ids (1, N))

The base's products are one for all tokens; an adapter adds two thin ones for its share (Chen et al. 2023, Punica, have
a kernel for it; here a loop over the few adapters that are in a pass).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.model.gpt import GPT, Linear
from tutelage.model.lora import adapted_linears

Pair = tuple[Tensor, Tensor]  # A (r, k), B (d, r), the scale in B


class Mixed(nn.Module):
    """Adds what the tokens' adapters say of x (1, N, k) to a linear map's output (1, N, d) itself."""

    def __init__(self, pairs: list[tuple[Tensor, Pair]]):
        super().__init__()
        self.pairs = pairs

    def forward(self, x: Tensor, mapped: Tensor) -> Tensor:
        for tokens, (down, up) in self.pairs:
            mapped[:, tokens] += F.linear(F.linear(x[:, tokens], down), up)
        return mapped


class Adapters:
    """The adapters of one base model, by name."""

    def __init__(self, base: GPT):
        self.base = base
        self.named: dict[str, dict[str, Pair]] = {}  # the pairs by the path of the linear map they belong to

    def add(self, name: str, adapted: GPT) -> None:
        """Those of a model of the same shape, as `from_peft` or training leaves it."""
        like = self.base.embedding.weight
        with torch.no_grad():
            self.named[name] = {
                path: (adapter.down.to(like.device, self.base.compute_dtype),
                       (adapter.spread_up() * adapter.config.scale).to(like.device, self.base.compute_dtype))
                for path, _, adapter in adapted_linears(adapted)
            }  # fmt: skip

    def remove(self, name: str) -> None:
        del self.named[name]

    @contextmanager
    def among(self, tokens: Mapping[str, Tensor]) -> Iterator[None]:
        """Within this, these tokens (indices of the N) of a pass go through these adapters, all others through none."""
        linears = {path for name in tokens for path in self.named[name]}
        modules = {path: cast(Linear, self.base.get_submodule(path)) for path in linears}
        try:
            for path, linear in modules.items():
                pairs = [(which, self.named[name][path]) for name, which in tokens.items() if path in self.named[name]]
                linear.adapter = Mixed(pairs)
            yield
        finally:
            for linear in modules.values():
                linear.adapter = None
