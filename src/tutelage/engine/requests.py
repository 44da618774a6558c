"""What is asked of the engine and what it reports: ids and numbers, no text.

Request -> [PromptScored] Token* Done
"""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tutelage.sampling.distribution import DistributionConfig

Reason = Literal["stop", "length", "cancelled", "error"]
Top = list[tuple[int, float]]  # tokens and their log-probabilities, most likely first


class QueueFull(Exception):
    """As many requests wait as may."""


class Gone(Exception):
    """The model is no longer served."""


@dataclass(frozen=True)
class Request:
    """One answer to one prompt."""

    prompt: tuple[int, ...]
    max_new_tokens: int  # 0: the prompt is only scored
    sampling: DistributionConfig
    seed: int  # the same seed gives the same answer, whatever else runs
    stop_ids: frozenset[int] = frozenset()  # end the answer and are not part of it
    top_logprobs: int = 0  # how many alternatives are reported with each token
    prompt_logprobs: bool = False
    owner: str = ""  # the waiting requests of each owner take turns with those of the others
    adapter: str = ""  # which of the engine's adapters answers; "" is the base


@dataclass(frozen=True)
class PromptScored:
    """How likely the prompt was: one entry per token of it; the first has no prefix, and is None and []."""

    logprobs: list[float | None]
    top: list[Top]


@dataclass(frozen=True)
class Token:
    """One more token. Its log-probability is the model's own, before penalties, bias, temperature and filters."""

    id: int
    logprob: float
    top: Top


@dataclass(frozen=True)
class Done:
    """The last event of every request."""

    reason: Reason
    prompt_tokens: int
    cached_tokens: int  # of the prompt, whose keys and values were there already
    detail: str = ""


Event = PromptScored | Token | Done
Listener = Callable[[Event], None]


class Handle:
    """A request that was submitted, in order of arrival."""

    numbers = itertools.count()

    def __init__(self, request: Request, listener: Listener, wake: Callable[[], None]):
        self.request, self.listener, self.wake = request, listener, wake
        self.number = next(self.numbers)
        self.cancelled = False

    def cancel(self) -> None:
        """The request ends before the next step; `Done("cancelled")` follows."""
        self.cancelled = True
        self.wake()

    def tell(self, event: Event) -> None:
        """Report. A listener that fails loses its own request and nobody else's."""
        try:
            self.listener(event)
        except Exception:
            logging.getLogger(__name__).exception("a listener failed, its request is cancelled")
            self.cancelled = True
