"""The pretraining text that PPO-ptx mixes in (Ouyang et al. 2022, eq. 2): windows of it, and the policy's loss on them.

corpus -> as many windows as the run will use -> next-token loss -> its share of the gradient (`learning/ptx.py`)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data.packing import Windows, encode_enough, window_count
from tutelage.data.prompts import text_length
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
    """Windows of text in a fixed random order, and how far a run has come in them."""

    def __init__(self, windows: Windows, absent: Tensor, device: torch.device, length: float):
        self.windows = windows
        self.absent = absent.to(device)  # tokens that this text never holds
        self.used = 0
        self.share = PretrainingShare(length)

    def loss(self, policy: GPT, count: int) -> Tensor:
        """GPT's next-token loss of the policy, a token mean, on the next `count` windows.

        Its softmax leaves out what such text never holds, the chat's markers: it would push them away at every step,
        and the policy would forget to end its turns.
        """
        batch = self.windows.batch(self.used, count).to(policy.embedding.weight.device)
        self.used += count
        hidden, targets = policy.trunk(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        return next_token_loss(hidden, policy.head_weight, targets, absent=self.absent)

    def state(self) -> dict[str, Any]:
        return {"used": self.used, "ratios": self.share.ratios}

    def load(self, state: dict[str, Any]) -> None:
        self.used, self.share.ratios = state["used"], state["ratios"]


def open_mix(run: Run, actors: Actors, corpus: Sequence[Path], steps: int) -> PretrainingMix:
    """Enough windows for so many optimizer steps of a run, if the corpus has them."""
    config: RLConfig = run.config  # type: ignore[assignment]
    length = text_length(config.ptx_window, actors.policy.config.context, "--ptx-window")
    used, generator = steps * config.ptx_windows, run.generator("mix")
    return read_mix(actors.tokenizer, corpus, length, used, config.ptx_share, generator, run.device.torch_device)


def read_mix(
    tokenizer: Tokenizer, corpus: Sequence[Path], length: int, count: int, share: float, generator: torch.Generator,
    device: torch.device,
) -> PretrainingMix:  # fmt: skip
    """Windows of `length` tokens, `count` of them or what there is; their gradient is to be `share` of the policy's.

    Raises InputError when the corpus fills none.
    """
    texts = [document.plain_text() for document in read_documents(corpus)]
    ids = encode_enough(tokenizer, texts, count * length + 1, generator)
    found = window_count(ids, length)
    if found == 0:
        raise InputError(f"corpus: it has {len(ids)} tokens, a window takes {length + 1}; give more text")
    windows = Windows(ids, length, torch.randperm(found, generator=generator).numpy())
    return PretrainingMix(windows, absent_specials(tokenizer, windows), device, share)


def absent_specials(tokenizer: Tokenizer, windows: Windows) -> Tensor:
    """(A,) the special tokens that do not come in the text at all."""
    held = set(np.unique(windows.ids).tolist())
    return torch.tensor(sorted(set(tokenizer.special.values()) - held), dtype=torch.long)
