"""The KV cache: stored keys and values, so that a new token costs one row instead of the whole prefix.

    attend(layer, q, k, v, mask) stores k and v and attends to all stored ones;  advance(n) after the last layer

All rows of a batch grow together; for requests that join and leave at any time see `engine/slot_cache.py`.
Dense layers allocate memory once, for the longest text; a banded layer stores no more than its band. `keep` drops the
rows that are finished.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tutelage.model.attention import attend


class Cache(Protocol):
    """The interface of a KV cache, as the decoder uses it."""

    length: int  # tokens stored in each row, if all rows have the same number

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Store k, v (B, kv_heads, L, D); return the attention of q (B, H, L, D) over all stored ones, of q's shape.

        q may be of the last tokens only, except in `engine/slot_cache.py`.
        """

    def banded(self, tokens: int, mask: Tensor | None) -> Tensor | None:
        """The mask for banded layers in a pass of this many tokens, given the mask for dense layers."""

    def advance(self, tokens: int) -> None:
        """Count this many tokens as stored; called once per forward pass, after the last layer."""


class KVCache:
    """Keys and values of one batch: (B, kv_heads, S, D) per layer, of which the first `length` tokens are stored.

    A banded layer has at most the last band - 1 tokens instead.
    """

    def __init__(
        self,
        *,
        bands: Sequence[int],
        batch: int,
        kv_heads: int,
        size: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        """`bands`: per layer, the number of tokens that a token attends to, itself included (0 for all); `size`: S."""
        self.bands = list(bands)
        sizes = [0 if band else size for band in bands]
        self.keys, self.values = (
            [torch.zeros(batch, kv_heads, size, head_width, dtype=dtype, device=device) for size in sizes]
            for _ in range(2)
        )
        self.length = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return attend(q, *self.append(layer, k, v), mask)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, kv_heads, L, D); return all to attend to, (B, kv_heads, S', D), with the new ones last."""
        if band := self.bands[layer]:
            k, v = torch.cat([self.keys[layer], k], dim=2), torch.cat([self.values[layer], v], dim=2)
            # The next token attends to band - 1 earlier ones.
            first = max(0, k.shape[2] - (band - 1))
            self.keys[layer], self.values[layer] = k[:, :, first:].clone(), v[:, :, first:].clone()
            return k, v
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def banded(self, tokens: int, mask: Tensor | None) -> Tensor:
        """j <= i and i - j < band, and allowed by `mask`: (1, 1, L, S), or (B, 1, L, S) if the mask has B rows.

        The columns are the tokens that a banded layer still stores, then the new ones.
        """
        band = max(self.bands)
        device, end = self.keys[0].device, self.length + tokens
        first = self.length - min(self.length, band - 1)
        i = torch.arange(self.length, end, device=device)[:, None]
        j = torch.arange(first, end, device=device)[None, :]
        near = ((j <= i) & (i - j < band))[None, None]
        return near if mask is None else mask[..., first:] & near

    def advance(self, tokens: int) -> None:
        """Count this many tokens as stored; called once per forward pass, after the last layer has appended."""
        self.length += tokens

    def pad(self, tokens: int) -> None:
        """Make the first `tokens` columns of an empty cache padding, for `place` to write into."""
        self.length = tokens
        for layer, band in enumerate(self.bands):
            if band:
                keys = self.keys[layer]
                empty = keys.new_zeros(keys.shape[0], keys.shape[1], min(tokens, band - 1), keys.shape[3])
                self.keys[layer], self.values[layer] = empty, empty.clone()

    def place(self, rows: Tensor, other: "KVCache") -> None:
        """Copy another cache's tokens to the newest columns of these rows. It must not be longer than this one."""
        for layer, band in enumerate(self.bands):
            stored = min(other.length, band - 1) if band else other.length
            end = min(self.length, band - 1) if band else self.length
            self.keys[layer][rows, :, end - stored : end] = other.keys[layer][:, :, :stored]
            self.values[layer][rows, :, end - stored : end] = other.values[layer][:, :, :stored]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the batch (indices)."""
        self._each_layer(lambda x: x[rows])

    def repeat(self, times: int) -> None:
        """Repeat each row `times` times, copies next to each other: several responses to one prompt."""
        self._each_layer(lambda x: x.repeat_interleave(times, dim=0))

    def _each_layer(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply `change` to keys and values one layer at a time, so that at most one layer is in memory twice."""
        for layer in range(len(self.bands)):
            self.keys[layer], self.values[layer] = change(self.keys[layer]), change(self.values[layer])
