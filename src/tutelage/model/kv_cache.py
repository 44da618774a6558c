"""Keys and values of the tokens already seen, so that each new token costs one row instead of the whole prefix.

    attend(layer, q, k, v, mask) keeps k and v, and looks at all that may be seen;  advance(n) after the last layer

Rows of one batch that go on together; requests that come and go are in `slots.py`. Memory of dense layers is taken
once for the longest text wanted (static shapes); a banded layer holds no more than its band. Rows that are finished
leave with `keep`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tutelage.model.attention import attend


class Cache(Protocol):
    """What the decoder asks of keys and values that were kept."""

    length: int  # tokens seen, where all rows have seen as many

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Keep k, v (B, kv_heads, L, D) and let q (B, H, L, D) look at all that it may: (B, H, L, D).

        q may be of the last tokens only, but not in `slots.py`.
        """

    def banded(self, tokens: int, mask: Tensor | None) -> Tensor | None:
        """`mask` as it is for banded layers, when this many tokens follow."""

    def advance(self, tokens: int) -> None:
        """Called once per forward pass, after the last layer."""


class KVCache:
    """One model's cache: for each layer keys and values (B, kv_heads, S, D), of which `length` tokens were seen."""

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
        """`bands` has one entry per layer: how many tokens it looks at, its own included; 0 is all of them."""
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
        """Store k, v (B, kv_heads, L, D); returns what may be seen, (B, kv_heads, S', D), the new ones at its end."""
        if band := self.bands[layer]:
            k, v = torch.cat([self.keys[layer], k], dim=2), torch.cat([self.values[layer], v], dim=2)
            first = max(0, k.shape[2] - (band - 1))  # the next token looks back band - 1
            self.keys[layer], self.values[layer] = k[:, :, first:].clone(), v[:, :, first:].clone()
            return k, v
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def banded(self, tokens: int, mask: Tensor | None) -> Tensor:
        """j <= i and i - j < band, within what `mask` allows: (1, 1, L, S), or as many rows as the mask has.

        Its columns are the tokens that a banded layer still holds, and the new ones.
        """
        band = max(self.bands)
        device, end = self.keys[0].device, self.length + tokens
        first = self.length - min(self.length, band - 1)
        i = torch.arange(self.length, end, device=device)[:, None]
        j = torch.arange(first, end, device=device)[None, :]
        near = ((j <= i) & (i - j < band))[None, None]
        return near if mask is None else mask[..., first:] & near

    def advance(self, tokens: int) -> None:
        """Called once per forward pass, after the last layer has appended."""
        self.length += tokens

    def pad(self, tokens: int) -> None:
        """Of an empty cache: the first so many columns are padding, for `place` to write into."""
        self.length = tokens
        for layer, band in enumerate(self.bands):
            if band:
                keys = self.keys[layer]
                empty = keys.new_zeros(keys.shape[0], keys.shape[1], min(tokens, band - 1), keys.shape[3])
                self.keys[layer], self.values[layer] = empty, empty.clone()

    def place(self, rows: Tensor, other: "KVCache") -> None:
        """What the other one holds becomes these rows' newest tokens; it has seen no more than this one."""
        for layer, band in enumerate(self.bands):
            held = min(other.length, band - 1) if band else other.length
            end = min(self.length, band - 1) if band else self.length
            self.keys[layer][rows, :, end - held : end] = other.keys[layer][:, :, :held]
            self.values[layer][rows, :, end - held : end] = other.values[layer][:, :, :held]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows (indices) of the batch."""
        self._each_layer(lambda x: x[rows])

    def repeat(self, times: int) -> None:
        """Make `times` copies of each row, next to each other: one prompt, several answers."""
        self._each_layer(lambda x: x.repeat_interleave(times, dim=0))

    def _each_layer(self, change: Callable[[Tensor], Tensor]) -> None:
        """Layer by layer, so that never more than one of them is there twice."""
        for layer in range(len(self.bands)):
            self.keys[layer], self.values[layer] = change(self.keys[layer]), change(self.values[layer])
