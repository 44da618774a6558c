"""What leaves the blocks that nothing trains, kept from the sampler while it writes the answers of a rollout.

    lower = Lower(layers);  generate(..., lower=lower);  lower.stream(length, source) -> Stream

Policy, reference, reward and value have these blocks in common (`rl/actors.py`), and the sampler has run them on every
token already. Only an answer's last token is not followed by another one: it is run for this alone.
"""

import torch
from torch import Tensor

from tutelage.model.gpt import Stream


class Lower:
    """The residual stream of prompts and answers as it leaves the lowest `layers` blocks."""

    def __init__(self, layers: int):
        self.layers = layers

    def begin(self, x: Tensor, pads: Tensor, samples: int, room: int) -> None:
        """x (P, W, C) of left-padded prompts, `samples` answers to each; pads (P samples,); room for the longest."""
        rows, width = len(pads), x.shape[1]
        self.starts = width - pads
        place = torch.arange(width, device=x.device)
        shifted = (place + pads[:, None]).clamp(max=width - 1)
        prompts = x.repeat_interleave(samples, 0).gather(1, shifted[:, :, None].expand(-1, -1, x.shape[2]))
        self.x = x.new_zeros(rows, width + room, x.shape[2])
        self.x[:, :width] = prompts * (place < self.starts[:, None])[:, :, None]

    def add(self, rows: Tensor, step: int, x: Tensor) -> None:
        """x (R, 1, C) of the tokens that these answers have at this step."""
        self.x[rows, self.starts[rows] + step] = x[:, 0]

    def stream(self, length: int, source: Tensor) -> Stream:
        """(B, length, C), right-padded; a copy, as what was made in inference mode cannot be learnt through."""
        return Stream(self.x[:, :length].clone(), self.layers, source)
