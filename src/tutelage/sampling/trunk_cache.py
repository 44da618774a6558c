"""The residual stream after the frozen lowest blocks, kept by the sampler for the models that share these blocks.

    cache = TrunkCache(layers, rows, length);  generate(..., trunk_cache=cache)
    cache.stream(length, source) -> ResidualStream

Policy, reference, reward model and value network share the frozen blocks (`rlhf/actors.py`). The sampler has already
run them on every token except the last one of each response; it runs that token only for this cache. A rollout may be
sampled in several batches: call `generate` once for each, in order, with the same cache.
"""

import torch
from torch import Tensor

from tutelage.model.gpt import ResidualStream


class TrunkCache:
    """The residual stream of prompts and responses after the lowest `layers` blocks."""

    def __init__(self, layers: int, rows: int, length: int):
        """For `rows` responses, each at most `length` tokens long together with its prompt."""
        self.layers, self.rows, self.length = layers, rows, length
        self.x: Tensor | None = None  # (rows, length, C)
        # The current batch: its first row in x, and where each of its responses starts.
        self.first, self.starts = 0, torch.empty(0)

    def begin(self, x: Tensor, pads: Tensor, samples: int) -> None:
        """Start a batch: x (P, W, C) of left-padded prompts with `samples` responses each; pads (P * samples,)."""
        if self.x is None:
            self.x = x.new_zeros(self.rows, self.length, x.shape[2])
        self.first, self.starts = self.first + len(self.starts), x.shape[1] - pads
        for row, start in enumerate(self.starts.tolist()):  # row by row, because a copy of the whole would be large
            self.x[self.first + row, :start] = x[row // samples, x.shape[1] - start :]

    def add(self, rows: Tensor, step: int, x: Tensor) -> None:
        """Store x (R, 1, C) of the tokens that these rows of the batch got at this step."""
        assert self.x is not None
        self.x[self.first + rows, self.starts[rows] + step] = x[:, 0]

    def stream(self, length: int, source: Tensor) -> ResidualStream:
        """The right-padded stream (B, length, C). `source` is the embedding of the model it comes from.

        Returns a clone, because inference-mode tensors cannot enter autograd. The original, which may take as much
        memory as a model, is freed.
        """
        assert self.x is not None
        copied, self.x = self.x[:, :length].clone(), None
        return ResidualStream(copied, self.layers, source)
