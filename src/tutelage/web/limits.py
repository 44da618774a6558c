"""Rate limits of a key: requests per minute, tokens per minute, and concurrent requests.

    limits.request(key)                                    counts a request
    with limits.attempt(key, characters):                  charges for the text of a request that is refused
    with limits.generation(key, most_tokens) as spent:     reserves tokens
        ...; spent.tokens = used                           returns those not used

The library `limits` counts requests in a sliding window. Tokens are a bucket that refills continuously. A generation
reserves the most tokens that it can cost and returns the unused ones at its end. A request that is refused after its
text was read costs as many tokens as such a text usually has, so that refused requests are not free. One process serves
all requests, so counts in memory are exact.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from tutelage.store.tables import ApiKey
from tutelage.web.errors import ApiError

CHARACTERS_PER_TOKEN = 4
LONGEST_WAIT = 119.0  # seconds; told to wait longer, OpenAI's clients give up at once


@dataclass
class Bucket:
    """The tokens that a key has left. `rate` tokens return per minute, up to `rate`."""

    rate: int
    left: float
    when: float = field(default_factory=time.monotonic)

    def refill(self, rate: int) -> None:
        now = time.monotonic()
        self.left = min(rate, self.left + (now - self.when) * rate / 60)
        self.rate, self.when = rate, now

    def seconds_until(self, tokens: float) -> float:
        return max(0.0, (tokens - self.left) * 60 / self.rate)


@dataclass
class Spending:
    """The tokens that one generation used. Set it before the block ends; the rest of the reservation is returned."""

    tokens: int = 0


class Limits:
    """The counts of all keys."""

    def __init__(self) -> None:
        self._requests = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._buckets: dict[str, Bucket] = {}
        self._running: dict[str, int] = {}

    def request(self, key: ApiKey) -> None:
        """Count one request. Raises ApiError if the key has sent too many."""
        item = RateLimitItemPerMinute(key.requests_per_minute)
        if not self._requests.hit(item, key.id):
            wait = max(0.0, self._requests.get_window_stats(item, key.id).reset_time - time.time())
            raise _refused("requests", f"{key.requests_per_minute} requests a minute", wait)

    @contextmanager
    def attempt(self, key: ApiKey, characters: int) -> Iterator[None]:
        """Count the block among the key's concurrent requests. If it is refused, charge for its text, as `spend` does.

        Raises ApiError if the key has no tokens left, or too many requests running.
        """
        self.require_tokens(key)
        with self._one_more(key):
            try:
                yield
            except BaseException as error:  # a client that disconnects pays, too
                if not (isinstance(error, ApiError) and error.status_code >= 500):
                    self._bucket(key).left -= min(estimated_tokens(characters), key.tokens_per_minute)
                raise

    def spend(self, key: ApiKey, tokens: int) -> None:
        """Charge for work of a known size, but for a minute's tokens at most. Raises ApiError if the key lacks them."""
        bucket = self._bucket(key)
        if bucket.left < (needed := min(tokens, bucket.rate)):
            raise _refused("tokens", f"{bucket.rate} tokens a minute", bucket.seconds_until(needed))
        bucket.left -= needed

    def require_tokens(self, key: ApiKey) -> None:
        """Raise ApiError if the key has used up its tokens."""
        bucket = self._bucket(key)
        if bucket.left <= 0:
            raise _refused("tokens", f"{bucket.rate} tokens a minute", bucket.seconds_until(1))

    @contextmanager
    def _one_more(self, key: ApiKey) -> Iterator[None]:
        """Raises ApiError if the key has too many requests running."""
        running = self._running.get(key.id, 0)
        if running >= key.concurrent:
            raise _refused("concurrency", f"{key.concurrent} requests at once", 1.0)
        self._running[key.id] = running + 1
        try:
            yield
        finally:
            self._running[key.id] -= 1

    @contextmanager
    def generation(self, key: ApiKey, most_tokens: int) -> Iterator[Spending]:
        """Reserve up to `most_tokens` for the block. Raises ApiError if the key lacks them, or has too many running."""
        with self._one_more(key):
            bucket, reserved = self._bucket(key), min(most_tokens, key.tokens_per_minute)
            self.spend(key, reserved)
            spent = Spending()
            try:
                yield spent
            finally:
                bucket.left += reserved - spent.tokens

    def headers(self, key: ApiKey) -> dict[str, str]:
        """The rate limit headers of OpenAI's API."""
        window = self._requests.get_window_stats(RateLimitItemPerMinute(key.requests_per_minute), key.id)
        bucket = self._bucket(key)
        return {
            "x-ratelimit-limit-requests": str(key.requests_per_minute),
            "x-ratelimit-remaining-requests": str(window.remaining),
            "x-ratelimit-reset-requests": duration(max(0.0, window.reset_time - time.time())),
            "x-ratelimit-limit-tokens": str(bucket.rate),
            "x-ratelimit-remaining-tokens": str(max(0, int(bucket.left))),
            "x-ratelimit-reset-tokens": duration(bucket.seconds_until(bucket.rate)),
        }

    def _bucket(self, key: ApiKey) -> Bucket:
        bucket = self._buckets.setdefault(key.id, Bucket(key.tokens_per_minute, key.tokens_per_minute))
        bucket.refill(key.tokens_per_minute)
        return bucket


def estimated_tokens(characters: int) -> int:
    """How many tokens a text of so many characters usually has."""
    return -(-characters // CHARACTERS_PER_TOKEN)


def duration(seconds: float) -> str:
    """A duration in OpenAI's format: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{int(rest)}s" if minutes else f"{rest:.3g}s"


def _refused(kind: str, limit: str, wait: float) -> ApiError:
    wait = min(wait, LONGEST_WAIT)
    message = f"Rate limit reached: this key may have {limit}. Try again in {duration(wait)}."
    headers = {"retry-after-ms": str(round(1000 * wait) + 1), "retry-after": str(int(wait) + 1)}
    return ApiError(429, message, type=kind, code="rate_limit_exceeded", headers=headers)
