"""Constrained decoding: which tokens of a response may come next, computed beside the forward pass.

    Masks.begin(constraints) -> forward pass -> Masks.wait -> choose -> Constraint.take -> Masks.begin ...

The engine knows no grammar, only token ids. A constraint belongs to one response and follows it token by token. Masks
are filled in a thread of their own while the model runs. A row whose mask takes long misses passes and delays no other.
"""

import queue
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Bits = np.ndarray  # (W,) int32; bit i % 32 of word i // 32 says whether token i may come next
GRACE = 0.01  # seconds that a pass waits for masks
STUCK = 3.0  # seconds after which a mask is given up; a busy machine may take one


class Constraint(Protocol):
    """What one response may be. An exception of its methods ends its request with an error, and no other request."""

    ended: bool  # whether nothing may follow, so that the response is complete

    def fill(self, bits: Bits) -> None:
        """Set the bits of the tokens that may come next, the stop ids only where the response may end.

        Called in the thread of the masks, while nothing else is called.
        """

    def take(self, token: int, left: int) -> int:
        """Advance by a drawn token, after which the response may have `left` more.

        Returns the token that is taken. It is another one if the response could otherwise not end in time.
        """


class PendingMask:
    """The mask of a response's next token, which may still have to be filled."""

    def __init__(self, constraint: Constraint, words: int):
        self.constraint, self.bits = constraint, np.zeros(words, dtype=np.int32)
        self.done, self.began = threading.Event(), float("inf")
        self._error: Exception | None = None

    def fill(self) -> None:
        """Fill the mask; called in the thread of the masks."""
        self.began = time.monotonic()
        try:
            self.constraint.fill(self.bits)
        except Exception as error:
            self._error = error
        self.done.set()

    @property
    def stuck(self) -> bool:
        return not self.done.is_set() and time.monotonic() - self.began > STUCK

    def get(self) -> Bits:
        """The filled mask. Raises what `Constraint.fill` raised, or ValueError if no token may come next."""
        if self._error:
            raise self._error
        if not self.done.is_set():
            raise ValueError(f"the next token was not found within {STUCK:g} seconds")
        if not self.bits.any():
            raise ValueError("no token of the vocabulary can follow")
        return self.bits


Waiting = queue.SimpleQueue[list[PendingMask]]  # masks to fill, those of a pass together


class Masks:
    """Fills the masks of a batch's constrained rows in a thread, one after the other."""

    def __init__(self, tokens: int):
        """tokens: size of the vocabulary."""
        self._words = -(-tokens // 32)
        self._waiting: Waiting | None = None  # the thread's, while there is one

    def begin(self, constraints: Sequence[Constraint]) -> list[PendingMask]:
        """Begin to fill the next masks of these constraints."""
        masks = [PendingMask(constraint, self._words) for constraint in constraints]
        if masks:
            self._waiting = self._waiting or _started()
            self._waiting.put(masks)
        return masks

    def wait(self, masks: Sequence[PendingMask]) -> None:
        """Wait until these masks are filled, but not for long. Leaves a thread that is stuck to itself."""
        deadline = time.monotonic() + GRACE
        for mask in masks:
            mask.done.wait(max(0.0, deadline - time.monotonic()))
        if any(mask.stuck for mask in masks):
            left = [mask for mask in masks if not mask.done.is_set() and not mask.stuck]
            self.close()
            self._waiting = _started()
            self._waiting.put(left)

    def close(self) -> None:
        """End the thread, once it is no longer stuck."""
        if self._waiting:
            self._waiting.put([])
        self._waiting = None


def _started() -> Waiting:
    """Start a thread. It fills the masks that are put into the queue, and ends at an empty list."""
    waiting: Waiting = queue.SimpleQueue()

    def work() -> None:
        while masks := waiting.get():
            for mask in masks:
                mask.fill()

    threading.Thread(target=work, name="masks", daemon=True).start()
    return waiting


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
