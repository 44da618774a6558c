"""Constrained decoding: which tokens of a response may come next, computed beside the forward pass.

    Masks.begin(rows) -> forward pass -> Masks.ready(rows) -> choose -> Constraint.take -> Masks.begin(rows) ...

The engine knows no grammar, only token ids. A constraint belongs to one response and follows it token by token. Masks
are filled in a thread of their own while the model runs, so the other rows hardly wait for them.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Bits = np.ndarray  # (W,) int32; bit i % 32 of word i // 32 says whether token i may come next


class Constraint(Protocol):
    """What one response may be. Any exception ends its request with an error, and no other request."""

    def fill(self, bits: Bits) -> None:
        """Set the bits of the tokens that may come next, the stop ids only where the response may end."""

    def take(self, token: int, left: int) -> int:
        """Advance by a drawn token, after which the response may have `left` more.

        Returns the token that is taken. It is another one if the response could otherwise not end in time.
        """

    @property
    def ended(self) -> bool:
        """Whether nothing may follow, so that the response is complete."""


class Masks:
    """Fills the masks of a batch's constrained rows. `tokens`: size of the vocabulary."""

    def __init__(self, tokens: int):
        self.tokens, self.words = tokens, -(-tokens // 32)
        self._pool: ThreadPoolExecutor | None = None

    def begin(self, constraints: Sequence[Constraint]) -> list["PendingMask"]:
        """Begin to fill the next masks, one after the other in the background."""
        if not constraints:
            return []
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="masks")
        bits = np.zeros((len(constraints), self.words), dtype=np.int32)
        job = self._pool.submit(_fill_all, list(constraints), bits)
        return [PendingMask(job, row, bits) for row in range(len(constraints))]

    def close(self) -> None:
        """End the thread."""
        if self._pool:
            self._pool.shutdown()


class PendingMask:
    """A mask that is being filled."""

    def __init__(self, job: "Future[list[Exception | None]]", row: int, bits: Bits):
        self._job, self._row, self._bits = job, row, bits

    def get(self) -> Bits:
        """Wait for the mask. Raises what `Constraint.fill` raised, or ValueError if no token may come next."""
        if error := self._job.result()[self._row]:
            raise error
        if not self._bits[self._row].any():
            raise ValueError("no token of the vocabulary can continue this response")
        return self._bits[self._row]


def _fill_all(constraints: Sequence[Constraint], bits: Bits) -> list[Exception | None]:
    """Fill one row of bits per constraint. Returns each one's error."""
    errors: list[Exception | None] = []
    for constraint, row in zip(constraints, bits, strict=True):
        try:
            constraint.fill(row)
            errors.append(None)
        except Exception as error:
            errors.append(error)
    return errors


def constrained(logits: Tensor, masks: Sequence[Bits | None]) -> Tensor:
    """(n, V) logits, one mask per row -> logits in which tokens that may not come next have minus infinity.

    Without any mask it is the same tensor. Rows without a mask keep their logits bit for bit.
    """
    rows = [row for row, mask in enumerate(masks) if mask is not None]
    if not rows:
        return logits
    bits = np.stack([mask for mask in masks if mask is not None])
    allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=logits.shape[1], bitorder="little").view(np.bool_)
    logits = logits.clone()
    logits[rows] = logits[rows].masked_fill(~torch.from_numpy(allowed).to(logits.device), float("-inf"))
    return logits
