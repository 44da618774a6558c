"""A running request: its token ids, and how many of them the model has processed.

`ids` holds the prompt and then the response; `known` tokens of it are filled in. The first `done` tokens have keys and
values in the request's slot. The forward pass that processes the last known token gives the next one.
"""

import numpy as np
import torch

from tutelage.engine.constraint import Bits, PendingMask
from tutelage.engine.next_token import TokenChoice
from tutelage.engine.requests import Handle, PromptScored, Reason
from tutelage.sampling.distribution import TokenHistory
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
        # Another request with the same prefix, and how many of its tokens this one waits for.
        self.leader: tuple[RunningRequest, int] | None = None
        self.chance = uniforms(request.seed, request.max_new_tokens)
        penalised = request.sampling.penalised
        self.history = TokenHistory([request.prompt], 1, vocab_size, device) if penalised else None
        self.scored = PromptScored([None], [[]])
        self.constraint = request.constraint
        self.mask: PendingMask | None = None  # of the next token
        self.allowed: Bits | None = None  # the same, once it is filled
        self.failure = ""  # what went wrong with the constraint

    @property
    def left(self) -> int:
        """Number of known tokens that have not been processed."""
        return self.known - self.done

    @property
    def written(self) -> int:
        """Length of the response so far."""
        return self.known - self.prompt

    def shares_kv_with(self, other: "RunningRequest") -> bool:
        """Whether equal tokens have equal keys and values in both: both use the same adapter."""
        return self.request.adapter == other.request.adapter

    def choice(self) -> TokenChoice:
        """How the next token is sampled."""
        return TokenChoice(self.request.sampling, float(self.chance[self.written]), self.history, self.allowed)

    def read_mask(self) -> bool:
        """Take over the mask of the next token, if the response is constrained. Returns whether it was filled."""
        if self.mask is None:
            return True
        if not self.mask.done.is_set() and not self.mask.stuck:
            return False
        try:
            self.allowed = self.mask.get()
        except Exception as error:
            self.failure = str(error)
        return True

    def repeat(self) -> None:
        """Process the last token once more, because the next one could not be sampled yet."""
        self.done = self.known - 1

    def take(self, token: int) -> int:
        """The token that follows: the drawn one, unless the constraint replaces it to end the response in time."""
        if self.constraint is None or token in self.request.stop_ids:
            return token
        try:
            return self.constraint.take(token, self.request.max_new_tokens - self.written - 1)
        except Exception as error:
            self.failure = str(error)
            return token

    @property
    def ended(self) -> Reason | None:
        """Why the response is complete after its last token; None if it goes on."""
        if self.constraint and self.constraint.ended:
            return "stop"
        return "length" if self.written == self.request.max_new_tokens else None

    def push(self, token: int) -> None:
        """Append a token to the response."""
        self.ids[self.known] = token
        self.known += 1
        if self.history:
            self.history.add(torch.tensor([token], device=self.history.counts.device))


def shares(left: list[int], budget: int) -> list[int]:
    """How a pass of `budget` tokens is divided among prompts: the size of each one's prefill chunk.

    `left` has each prompt's unprocessed tokens, in order of arrival. Half of the budget goes to the oldest prompt, so
    that it advances. The rest goes to the prompts with fewest tokens left, so that short ones do not wait.
    """
    counts = [0] * len(left)
    if left:
        counts[0] = min(left[0], budget - budget // 2)
    rest = budget - sum(counts)
    for i in sorted(range(len(left)), key=lambda i: left[i] - counts[i]):
        more = min(left[i] - counts[i], rest)
        counts[i] += more
        rest -= more
    return counts
