"""A reward that is an HTTP server, called a scorer.

    POST {"model": name, "input": [conversation, ...]}  ->  {"object": "list", "data": [{"index", "score"}, ...]}

A conversation is a list of messages that ends with the response to score. Scores may come in any order; each carries
the index of its conversation. The model's name is the URL's fragment: http://127.0.0.1:8000/v1/score#helpful.

Each request holds one batch and has a time limit. It is repeated a few times after a connection error, a timeout, or
status 429 or 5xx. If the server sends Retry-After with such a status, the next attempt waits that long, but at most a
minute, and such waits may take five minutes in total: rate limits are often per minute. Redirects are not followed and
proxies are not used.
"""

import email.utils
import http.client
import io
import json
import socket
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from tutelage.data.fields import kind_of
from tutelage.data.messages import Messages
from tutelage.errors import InputError
from tutelage.rewards.reward import is_score

BATCH = 32  # conversations per request
TIMEOUT = 60.0  # seconds for the connection, and again for the whole HTTP response
ATTEMPTS = 4  # failures after which a request is given up; those with a Retry-After do not count
PAUSE = 0.5  # seconds before the second attempt, doubled before each further one
MAX_WAIT = (
    60.0  # seconds until the next attempt at most, even if Retry-After asks for more: the server may be free sooner
)
MAX_TOTAL_WAIT = 300.0  # seconds that one request waits in total because of Retry-After
MAX_BODY = 2**24  # bytes of an HTTP response; 32 scores take about 1,500
DEFAULT_MODEL = "reward"


class RetryableError(Exception):
    """A failure that another attempt may avoid. `wait` is the server's Retry-After in seconds, 0 without one."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = min(wait, MAX_WAIT)


class HTTPReward:
    """Requests scores from a server, batch by batch."""

    def __init__(self, url: str, key: str = ""):
        try:
            self.url = urlsplit(url)
            self.port = self.url.port
        except ValueError as error:
            raise InputError(f"reward {url}: {error}; give http://HOST:PORT/PATH") from None
        if not self.url.hostname:
            raise InputError(f"reward {url}: names no host; give http://HOST:PORT/PATH")
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.address, self.model = self.url._replace(fragment="").geturl(), self.url.fragment or DEFAULT_MODEL

    def __call__(self, conversations: Sequence[Messages]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(conversations), BATCH):
            batch = conversations[start : start + BATCH]
            body = self.request({"model": self.model, "input": list(batch)})
            scores += self.checked(body, len(batch))
        return scores

    def request(self, content: dict[str, Any]) -> bytes:
        """Post the content, repeatedly if that may help, and return the response's body.

        Raises InputError after ATTEMPTS failures, or when the waits that the server asks for exceed MAX_TOTAL_WAIT.
        """
        body = json.dumps(content, ensure_ascii=False).encode()
        failures, waited = 0, 0.0
        while True:
            try:
                return self.post(body)
            except RetryableError as error:
                reason, wait = str(error), error.wait
            failures += not wait
            if failures == ATTEMPTS:
                problem = f"{reason}, {ATTEMPTS} times; check that the scorer is running at this address"
                raise InputError(f"reward {self.address}: {problem}")
            pause = max(wait, PAUSE * 2 ** max(0, failures - 1))
            waited += pause if wait else 0
            if waited > MAX_TOTAL_WAIT:
                problem = f"{reason}, and the server asks to wait for more than {MAX_TOTAL_WAIT:.0f} s in total"
                raise InputError(f"reward {self.address}: {problem}; raise its rate limit, or resume later")
            time.sleep(pause)

    def post(self, body: bytes) -> bytes:
        """One attempt. Raises RetryableError for a failure that may pass, InputError for one that will not."""
        connection = connect(self.url, self.port)
        try:
            connection.request("POST", path_of(self.url), body, self.headers)
            response = connection.getresponse()
            status, received = response.status, response.read(MAX_BODY + 1)
            if response.length and len(received) <= MAX_BODY:
                raise http.client.IncompleteRead(received, response.length)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RetryableError(f"the request failed ({reason})") from None
        finally:
            connection.close()
        if status == 429 or status >= 500:
            wait = seconds_until(response.getheader("Retry-After", ""))
            raise RetryableError(f"status {status}{excerpt(received)}", wait)
        if status != 200:
            move = "give --reward-key-file" if status in (401, 403) else "check the URL and what the server accepts"
            raise InputError(f"reward {self.address}: status {status}{excerpt(received)}; {move}")
        if len(received) > MAX_BODY:
            raise InputError(f"reward {self.address}: the response is longer than {MAX_BODY} bytes; check the URL")
        return received

    def checked(self, body: bytes, count: int) -> list[float]:
        """The scores in the order of the conversations. Raises InputError for a body of another shape."""
        try:
            return read_scores(json.loads(body), count)
        except (ValueError, RecursionError) as error:
            problem = str(error) if type(error) is ValueError else f"the response is not JSON{excerpt(body)}"
            shape = '{"object": "list", "data": [{"index": 0, "score": 1.5}, ...]}'
            raise InputError(f"reward {self.address}: {problem}; a scorer must return {shape}") from None


class DeadlineReader(io.RawIOBase):
    """Reads a socket with one deadline for everything; the socket's own timeout starts anew with each read."""

    def __init__(self, source: socket.socket, stream: io.RawIOBase):
        self.source, self.stream = source, stream
        self.deadline = time.monotonic() + (source.gettimeout() or TIMEOUT)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.source.settimeout(left)
        return self.stream.readinto(buffer)

    def close(self) -> None:
        self.stream.close()
        super().close()


class DeadlineResponse(http.client.HTTPResponse):
    """An HTTP response with one time limit for all of it, for servers that send a few bytes at a time."""

    def __init__(self, source: socket.socket, *args: Any, **kwargs: Any):
        super().__init__(source, *args, **kwargs)
        self.fp = io.BufferedReader(DeadlineReader(source, self.fp.detach()))


def connect(url: SplitResult, port: int | None) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", port, timeout=TIMEOUT)
    connection.response_class = DeadlineResponse
    return connection


def seconds_until(retry_after: str) -> float:
    """The wait that a Retry-After header asks for, given as seconds or an HTTP date; 0 if it is neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = email.utils.parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def path_of(url: SplitResult) -> str:
    return quote((url.path or "/") + (f"?{url.query}" if url.query else ""), safe="/%?=&+,;:@")


def excerpt(body: bytes) -> str:
    """The beginning of an unexpected body, in brackets, for an error message."""
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return f" ({text})" if text else ""


def read_scores(content: Any, count: int) -> list[float]:
    """The scores in a scorer's parsed response, by index. Raises ValueError unless each index has one finite score."""
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        found = f'"data" is {kind_of(data)}' if isinstance(content, dict) else f"the response is {kind_of(content)}"
        raise ValueError(f"no list of scores: {found}")
    if len(data) != count:
        raise ValueError(f"{len(data)} scores for {count} conversations")
    scores: dict[int, float] = {}
    for item in data:
        index, score = (item.get("index"), item.get("score")) if isinstance(item, dict) else (None, None)
        if type(index) is not int or not 0 <= index < count or index in scores:
            raise ValueError(f"index {json.dumps(index)}: each from 0 to {count - 1} must appear once")
        if not isinstance(score, int | float) or isinstance(score, bool) or not is_score(score):
            raise ValueError(f"the score of index {index} is {json.dumps(score)}, not a finite number")
        scores[index] = float(score)
    return [scores[index] for index in range(count)]


def score_list(model: str, scores: Iterable[tuple[int, float]]) -> dict[str, Any]:
    """The body of a scorer's response with these (index, score) pairs; `read_scores` reads the same shape."""
    data = [{"index": index, "score": score} for index, score in scores]
    return {"object": "list", "data": data, "model": model}
