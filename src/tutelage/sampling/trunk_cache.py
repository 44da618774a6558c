"""What leaves the blocks that nothing trains, kept from the sampler while it writes the answers of a rollout.

    lower = TrunkCache(layers, rows, length);  generate(..., lower=lower);  lower.stream(length, source) -> Stream

A rollout may be sampled in several batches, one after the other: then `generate` is called as often.

Policy, reference, reward and value share these blocks (`rlhf/actors.py`), and the sampler has already run them on every
token but the last of a response. That token is run only for this.
"""

import torch
from torch import Tensor

from tutelage.model.gpt import Stream


class TrunkCache:
    """The residual stream of prompts and answers as it leaves the lowest `layers` blocks."""

    def __init__(self, layers: int, rows: int, length: int):
        """For so many answers, none of which is longer with its prompt."""
        self.layers, self.rows, self.length = layers, rows, length
        self.x: Tensor | None = None  # (rows, length, C)
        self.first, self.starts = 0, torch.empty(0)  # of the batch that is being written: its first row; its prompts

    def begin(self, x: Tensor, pads: Tensor, samples: int) -> None:
        """A batch. x (P, W, C) of left-padded prompts, `samples` answers to each; pads (P samples,)."""
        if self.x is None:
            self.x = x.new_zeros(self.rows, self.length, x.shape[2])
        self.first, self.starts = self.first + len(self.starts), x.shape[1] - pads
        for row, start in enumerate(self.starts.tolist()):  # each in its place at once: the whole of them is large
            self.x[self.first + row, :start] = x[row // samples, x.shape[1] - start :]

    def add(self, rows: Tensor, step: int, x: Tensor) -> None:
        """x (R, 1, C) of the tokens that these answers of the batch have at this step."""
        assert self.x is not None
        self.x[self.first + rows, self.starts[rows] + step] = x[:, 0]

    def stream(self, length: int, source: Tensor) -> Stream:
        """(B, length, C), right-padded; a copy, as what was made in inference mode cannot be learnt through. What it is
        a copy of goes: there may be as much of it as of a model.
        """
        assert self.x is not None
        copied, self.x = self.x[:, :length].clone(), None
        return Stream(copied, self.layers, source)
