"""Bits per byte of held-out text under a model, comparable across tokenizers.

    model, held-out windows -> sum of -log2 p(token) / bytes of text

The end-of-text token has no bytes but its loss counts, so the figure errs on the high side. The tokens that a tokenizer
puts before a document, such as BOS, are read and not predicted, as in lm-evaluation-harness.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from tutelage.data.packing import window, window_count
from tutelage.errors import InputError
from tutelage.learning.head import next_token_loss
from tutelage.model.gpt import GPT

BATCH = 32  # windows per forward pass


def check_windows(ids: np.ndarray, length: int) -> None:
    """Raises InputError unless the held-out text fills at least one window. Call it before training starts."""
    if window_count(ids, length) == 0:
        raise InputError(f"held-out text: {len(ids)} tokens, but a window needs {length + 1}; pass more text")


@torch.no_grad()
def bits_per_byte(
    model: GPT,
    ids: np.ndarray,
    token_byte_counts: Sequence[int],
    windows: int,
    length: int,
    opening: Sequence[int] = (),
) -> float:
    """Bits per byte on the first `windows` windows of `length` tokens of a stream (fewer if it is shorter).

    The tokens of `opening` are not scored.
    """
    rows = np.arange(min(windows, window_count(ids, length)))
    sizes = torch.tensor(token_byte_counts)
    nats, total_bytes = 0.0, 0
    for batch_rows in np.array_split(rows, math.ceil(len(rows) / BATCH)):
        batch = window(ids, batch_rows, length)
        inputs, targets = batch[:, :-1], batch[:, 1:]
        device = model.embedding.weight.device
        hidden = model.trunk(inputs.to(device)).flatten(0, 1)
        targets = targets.flatten()
        if opening:
            scored = ~torch.isin(targets, torch.tensor(opening))
            hidden, targets = hidden[scored.to(device)], targets[scored]
        nats += float(next_token_loss(hidden, model.head_weight, targets.to(device), total=1.0))
        total_bytes += int(sizes[targets].sum())
    return nats / math.log(2) / total_bytes
