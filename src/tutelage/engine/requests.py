"""The engine's input and output: requests and events, in token ids rather than text.

Request -> [PromptScored] Token* Done
"""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tutelage.engine.constraint import Constraint
from tutelage.sampling.distribution import DistributionConfig

Reason = Literal["stop", "length", "cancelled", "error", "constraint"]
Top = list[tuple[int, float]]  # tokens and their log-probabilities, most likely first


class QueueFull(Exception):
    """The queue has no place for this owner's request."""


class ModelUnloaded(Exception):
    """The model or adapter is no longer served."""


@dataclass(frozen=True)
class Request:
    """One response to one prompt."""

    prompt: tuple[int, ...]
    max_new_tokens: int  # 0: only score the prompt
    sampling: DistributionConfig
    seed: int  # the same seed gives the same response, whatever else runs
    stop_ids: frozenset[int] = frozenset()  # tokens that end the response and are not part of it
    top_logprobs: int = 0  # number of alternatives reported with each token
    prompt_logprobs: bool = False
    owner: str = ""  # owners take turns in the queue
    adapter: str = ""  # name of one of the engine's adapters; "" is the base model
    constraint: Constraint | None = None  # of this response alone: n responses have n constraints


@dataclass(frozen=True)
class PromptScored:
    """Log-probabilities of the prompt's tokens, one entry each. The first token has no prefix: its entries are None
    and [].
    """

    logprobs: list[float | None]
    top: list[Top]


@dataclass(frozen=True)
class Token:
    """One more token of the response."""

    id: int
    logprob: float  # under the model's own distribution, before penalties, bias, temperature and filters
    top: Top


@dataclass(frozen=True)
class Done:
    """The last event of every request. "constraint": its constraint failed, and `detail` says how."""

    reason: Reason
    prompt_tokens: int
    cached_tokens: int  # prompt tokens whose keys and values did not have to be computed
    detail: str = ""
    end: Token | None = None  # the token that ended the response, if one did; it is not part of it


Event = PromptScored | Token | Done
Listener = Callable[[Event], None]


class Handle:
    """A submitted request."""

    numbers = itertools.count()

    def __init__(self, request: Request, listener: Listener, wake: Callable[[], None]):
        self.request, self.listener, self.wake = request, listener, wake
        self.number = next(self.numbers)  # ascending in order of arrival
        self.cancelled = False

    def cancel(self) -> None:
        """End the request before the next step; `Done("cancelled")` follows."""
        self.cancelled = True
        self.wake()

    def emit(self, event: Event) -> None:
        """Pass an event to the listener. A listener that raises gets its own request cancelled and no other."""
        try:
            self.listener(event)
        except Exception:
            logging.getLogger(__name__).exception("the request's listener raised; the request is cancelled")
            self.cancelled = True
