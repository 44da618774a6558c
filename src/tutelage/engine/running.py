"""One request that is running: what it has read, and what it has written.

A row's ids are its prompt and then its answer. `done` of them have keys and values in its slot; the pass that runs the
last known one gives the next.
"""

import numpy as np
import torch

from tutelage.engine.next_token import TokenChoice
from tutelage.engine.requests import Handle, PromptScored
from tutelage.sampling.distribution import Written
from tutelage.sampling.sampler import uniforms


class RunningRequest:
    """A request in a slot."""

    def __init__(self, handle: Handle, slot: int, vocab_size: int, device: torch.device):
        self.handle, self.slot = handle, slot
        self.request = request = handle.request
        self.prompt = len(request.prompt)
        self.ids = np.zeros(self.prompt + request.max_new_tokens, dtype=np.int64)
        self.ids[: self.prompt] = request.prompt
        self.known, self.done, self.cached = self.prompt, 0, 0
        self.leader: tuple[RunningRequest, int] | None = (
            None  # another row is about to read so many tokens that both begin with
        )
        self.chance = uniforms(request.seed, request.max_new_tokens)
        penalised = request.sampling.penalised
        self.said = Written([request.prompt], 1, vocab_size, device) if penalised else None
        self.scored = PromptScored([None], [[]])

    @property
    def left(self) -> int:
        """Known tokens that have not been run."""
        return self.known - self.done

    @property
    def written(self) -> int:
        return self.known - self.prompt

    def like(self, other: "RunningRequest") -> bool:
        """Whether the same tokens give both the same keys and values."""
        return self.request.adapter == other.request.adapter

    def choice(self) -> TokenChoice:
        return TokenChoice(self.request.sampling, float(self.chance[self.written]), self.said)

    def push(self, token: int) -> None:
        """One more token of the answer."""
        self.ids[self.known] = token
        self.known += 1
        if self.said:
            self.said.add(torch.tensor([token], device=self.said.counts.device))


def shares(left: list[int], budget: int) -> list[int]:
    """How many tokens of each prompt, given in order of arrival, are read in one pass of `budget` tokens.

    Half is the oldest prompt's, so that it gets on; the rest goes to the shortest, which need not wait for long ones.
    """
    given = [0] * len(left)
    if left:
        given[0] = min(left[0], budget - budget // 2)
    rest = budget - sum(given)
    for i in sorted(range(len(left)), key=lambda i: left[i] - given[i]):
        more = min(left[i] - given[i], rest)
        given[i] += more
        rest -= more
    return given
