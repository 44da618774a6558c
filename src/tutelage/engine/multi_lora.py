"""Several LoRA adapters on one frozen base model at once: each token of a forward pass uses its own adapter.

    Adapters(base).add(name, adapted) ...;  with adapters.among({name: which of the N tokens}): trunk(ids (1, N))

The base's matrix products run once for all tokens, and each adapter adds two thin products for its tokens. Chen et al.
2023 (Punica) have a kernel for this; here it is a loop over the adapters of the pass, which are few.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from tutelage.model.gpt import GPT, Linear
from tutelage.model.lora import adapted_linears
from tutelage.model.prepack import product

Pair = tuple[Tensor, Tensor]  # A (r, k), B (d, r); B includes the LoRA scale


class AdaptersOfTokens(nn.Module):
    """Stands in for a linear map's adapter: each token's own adapter is added, in place, to the map's output."""

    def __init__(self, pairs: list[tuple[Tensor, Pair]]):
        """`pairs`: which tokens, and the adapter they use."""
        super().__init__()
        self.pairs = pairs

    def forward(self, x: Tensor, mapped: Tensor) -> Tensor:
        """Input x (1, N, k) and output `mapped` (1, N, d) of the linear map -> `mapped`."""
        for tokens, (down, up) in self.pairs:
            mapped[:, tokens] += product(product(x[:, tokens], down, None), up, None)
        return mapped


class Adapters:
    """The adapters of one base model, by name."""

    def __init__(self, base: GPT):
        self.base = base
        self.named: dict[str, dict[str, Pair]] = {}  # name -> path of a linear map -> its matrices

    def add(self, name: str, adapted: GPT) -> None:
        """Take the adapters of a model of the same shape, as `from_peft` or training leaves it."""
        device, dtype = self.base.embedding.weight.device, self.base.compute_dtype
        pairs: dict[str, Pair] = {}
        with torch.no_grad():
            for path, _, adapter in adapted_linears(adapted):
                up = adapter.spread_up() * adapter.config.scale
                pairs[path] = adapter.down.to(device, dtype), up.to(device, dtype)
        self.named[name] = pairs

    def remove(self, name: str) -> None:
        del self.named[name]

    @contextmanager
    def among(self, tokens: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside this context, a forward pass uses adapter `name` for the tokens (indices of the N) in `tokens[name]`.

        All other tokens use the base model alone.
        """
        linears = {path for name in tokens for path in self.named[name]}
        modules = {path: cast(Linear, self.base.get_submodule(path)) for path in linears}
        try:
            for path, linear in modules.items():
                pairs = [(which, self.named[name][path]) for name, which in tokens.items() if path in self.named[name]]
                linear.adapter = AdaptersOfTokens(pairs)
            yield
        finally:
            for linear in modules.values():
                linear.adapter = None
