"""The pretraining text that PPO-ptx mixes in (Ouyang et al. 2022, eq. 2), and the policy's loss on it.

corpus -> as many windows as the run will use -> next-token loss -> its share of the gradient (`learning/ptx.py`)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data.packing import Windows, encode_at_least, window_count
from tutelage.data.prompts import row_length
from tutelage.data.records import read_documents
from tutelage.errors import InputError
from tutelage.learning.head import next_token_loss
from tutelage.learning.ptx import PretrainingShare
from tutelage.model.gpt import GPT
from tutelage.rlhf.actors import Actors
from tutelage.rlhf.config import RLConfig
from tutelage.runs.run import Run
from tutelage.text.tokenizer import Tokenizer


class PretrainingMix:
    """Windows of text in a fixed random order, and how many of them the run has used."""

    def __init__(
        self, windows: Windows, absent: Tensor, device: torch.device, length: float, breaks: Tensor | None = None
    ):
        """absent: special tokens that never occur in this text; breaks: tokens in it that are not to be learned."""
        self.windows = windows
        self.breaks = torch.tensor([], dtype=torch.long) if breaks is None else breaks
        self.absent = torch.cat([absent, self.breaks]).unique().to(device)
        self.used = 0
        self.share = PretrainingShare(length)

    def loss(self, policy: GPT, count: int) -> Tensor:
        """Mean next-token loss of the policy on the next `count` windows.

        The softmax leaves out the chat's special tokens, which such text never holds. Otherwise every step would lower
        their probability, and the policy would forget to end its turns. What the text has in their place, such as line
        breaks between turns, can be left out as well, as targets and from the softmax (`--no-ptx-breaks`).
        """
        batch = self.windows.batch(self.used, count).to(policy.embedding.weight.device)
        self.used += count
        hidden, targets = policy.trunk(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        if len(self.breaks):
            learned = ~torch.isin(targets, self.breaks.to(targets.device))
            hidden, targets = hidden[learned], targets[learned]
        return next_token_loss(hidden, policy.head_weight, targets, absent=self.absent)

    def state(self) -> dict[str, Any]:
        return {"used": self.used, "ratios": self.share.ratios}

    def load(self, state: dict[str, Any]) -> None:
        self.used, self.share.ratios = state["used"], state["ratios"]


def open_mix(run: Run, config: RLConfig, actors: Actors, corpus: Sequence[Path], steps: int) -> PretrainingMix:
    """Enough windows for this many optimizer steps, if the corpus has them."""
    length = row_length(config.ptx_window, actors.policy.config.context, "--ptx-window")
    count, generator = steps * config.ptx_windows, run.generator("mix")
    windows = read_windows(actors.tokenizer, corpus, length, count, generator)
    absent = absent_specials(actors.tokenizer, windows)
    breaks = None if config.ptx_breaks else break_tokens(actors.tokenizer)
    return PretrainingMix(windows, absent, run.device.torch_device, config.ptx_share, breaks)


def read_windows(
    tokenizer: Tokenizer, corpus: Sequence[Path], length: int, count: int, generator: torch.Generator
) -> Windows:
    """Windows of `length` tokens: `count` of them, or as many as the corpus fills.

    Raises InputError when the corpus fills none.
    """
    texts = [document.plain_text() for document in read_documents(corpus)]
    ids = encode_at_least(tokenizer, texts, count * length + 1, generator)
    available = window_count(ids, length)
    if available == 0:
        raise InputError(f"corpus: it has {len(ids)} tokens, and one window takes {length + 1}; give more text")
    return Windows(ids, length, torch.randperm(available, generator=generator).numpy())


def absent_specials(tokenizer: Tokenizer, windows: Windows) -> Tensor:
    """(A,) the special tokens that never occur in the windows."""
    present = set(np.unique(windows.ids).tolist())
    return torch.tensor(sorted(set(tokenizer.special.values()) - present), dtype=torch.long)


def break_tokens(tokenizer: Tokenizer) -> Tensor:
    """(B,) the tokens that contain a line break, and the one between documents."""
    broken = [id for id, text in enumerate(tokenizer.token_bytes()) if b"\n" in text]
    return torch.tensor(sorted({*broken, tokenizer.end_of_text_id}), dtype=torch.long)
