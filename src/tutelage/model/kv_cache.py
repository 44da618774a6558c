"""Keys and values of the tokens already seen, so that each new token costs one row instead of the whole prefix.

    append(layer, k, v) -> all keys, all values;  advance(n) after the last layer;  keep(rows) when answers finish

Memory is taken once for the longest text wanted (static shapes); rows that are finished leave with `keep`.
"""

import torch
from torch import Tensor


class KVCache:
    """One model's cache. keys and values: (layers, B, kv_heads, S, D), the first `length` of S filled."""

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        kv_heads: int,
        size: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = (layers, batch, kv_heads, size, head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, kv_heads, L, D) behind the filled part; returns everything seen, (B, kv_heads, S', D)."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Called once per forward pass, after the last layer has appended."""
        self.length += tokens

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows (indices) of the batch."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def repeat(self, times: int) -> None:
        """Make `times` copies of each row, next to each other: one prompt, several answers."""
        self.keys = self.keys.repeat_interleave(times, dim=1)
        self.values = self.values.repeat_interleave(times, dim=1)
