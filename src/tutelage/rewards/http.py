"""A reward that is somebody's server.

    POST {"model": name, "input": [conversation, ...]}  ->  {"object": "list", "data": [{"index", "score"}, ...]}

A conversation is a list of messages that ends with the answer to judge; scores may come in any order, by their index.
The model's name is the URL's fragment: http://127.0.0.1:8000/v1/score#helpful. Requests hold a batch, end at a time
limit and are repeated a few times where that may help: no connection, a timeout, status 429 or 5xx. A server that says
with these when to come back (Retry-After) is asked again then, for some minutes: limits are often so many a minute.
Redirects are not followed and proxies not asked.
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
from tutelage.data.records import Messages
from tutelage.errors import InputError
from tutelage.rewards.reward import is_score

BATCH = 32  # conversations per request
TIMEOUT = 60.0  # seconds for a connection, and for the whole of an answer
ATTEMPTS = 4  # of a request, the first one included; those after which the server said when to come back do not count
PAUSE = 0.5  # seconds before the second attempt, doubled before each further one
LONGEST_WAIT = 60.0  # seconds until the next attempt, whatever the server asks for: it may be free sooner
PATIENCE = 300.0  # seconds that a request waits in all because the server says so
LARGEST = 2**24  # bytes of an answer; 32 scores take about 1,500
DEFAULT_MODEL = "reward"


class Again(Exception):
    """What another attempt may mend, in so many seconds if the server has said when."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = min(wait, LONGEST_WAIT)


class HTTPReward:
    """Asks a server for scores, batch by batch."""

    def __init__(self, url: str, key: str = ""):
        try:
            self.url = urlsplit(url)
            self.port = self.url.port
        except ValueError as error:
            raise InputError(f"reward {url}: {error}; give http://HOST:PORT/PATH") from None
        if not self.url.hostname:
            raise InputError(f"reward {url}: names no host; give http://HOST:PORT/PATH")
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.shown, self.model = self.url._replace(fragment="").geturl(), self.url.fragment or DEFAULT_MODEL

    def __call__(self, conversations: Sequence[Messages]) -> list[float]:
        scores: list[float] = []
        for at in range(0, len(conversations), BATCH):
            some = conversations[at : at + BATCH]
            scores += self.checked(self.ask({"model": self.model, "input": list(some)}), len(some))
        return scores

    def ask(self, question: dict[str, Any]) -> bytes:
        """The body of the answer, after as many attempts as it takes. Raises InputError when all have failed."""
        body = json.dumps(question, ensure_ascii=False).encode()
        failed, waited = 0, 0.0
        while True:
            try:
                return self.post(body)
            except Again as error:
                reason, wait = str(error), error.wait
            failed += not wait
            if failed == ATTEMPTS:
                raise InputError(f"reward {self.shown}: {reason}, {ATTEMPTS} times; check that the scorer runs there")
            pause = max(wait, PAUSE * 2 ** max(0, failed - 1))
            waited += pause if wait else 0
            if waited > PATIENCE:
                line = f"{reason}, and it asks to wait for more than {PATIENCE:.0f} s"
                raise InputError(f"reward {self.shown}: {line}; raise its limits, or go on later")
            time.sleep(pause)

    def post(self, body: bytes) -> bytes:
        """One attempt. Raises Again for what may pass, InputError for what will not."""
        connection = connect(self.url, self.port)
        try:
            connection.request("POST", path_of(self.url), body, self.headers)
            answer = connection.getresponse()
            status, told = answer.status, answer.read(LARGEST + 1)
            if answer.length and len(told) <= LARGEST:
                raise http.client.IncompleteRead(told, answer.length)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise Again(f"no answer ({' '.join(str(error).split()) or type(error).__name__})") from None
        finally:
            connection.close()
        if status == 429 or status >= 500:
            raise Again(f"status {status}{excerpt(told)}", seconds_until(answer.getheader("Retry-After", "")))
        if status != 200:
            move = "give --reward-key-file" if status in (401, 403) else "check the URL and what it takes"
            raise InputError(f"reward {self.shown}: status {status}{excerpt(told)}; {move}")
        if len(told) > LARGEST:
            raise InputError(f"reward {self.shown}: the answer is longer than {LARGEST} bytes; check the URL")
        return told

    def checked(self, told: bytes, count: int) -> list[float]:
        """The scores in the order of the conversations. Raises InputError for any other shape."""
        try:
            return read_scores(json.loads(told), count)
        except (ValueError, RecursionError) as error:
            what = str(error) if type(error) is ValueError else f"not JSON{excerpt(told)}"
            shape = '{"object": "list", "data": [{"index": 0, "score": 1.5}, ...]}'
            raise InputError(f"reward {self.shown}: {what}; a scorer answers {shape}") from None


class Until(io.RawIOBase):
    """What a socket receives within its timeout from now on, where its own would begin anew with each piece."""

    def __init__(self, receiving: socket.socket, pieces: io.RawIOBase):
        self.receiving, self.pieces = receiving, pieces
        self.end = time.monotonic() + (receiving.gettimeout() or TIMEOUT)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.receiving.settimeout(left)
        return self.pieces.readinto(buffer)

    def close(self) -> None:
        self.pieces.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """One with a time limit for the whole of it, from its first line on: a server may drip."""

    def __init__(self, receiving: socket.socket, *given: Any, **named: Any):
        super().__init__(receiving, *given, **named)
        self.fp = io.BufferedReader(Until(receiving, self.fp.detach()))


def connect(url: SplitResult, port: int | None) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", port, timeout=TIMEOUT)
    connection.response_class = Answer
    return connection


def seconds_until(said: str) -> float:
    """How long Retry-After asks to wait, in seconds or until an HTTP date; 0 where it says neither."""
    if said.strip().isdecimal():
        return float(said)
    try:
        date = email.utils.parsedate_to_datetime(said)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def path_of(url: SplitResult) -> str:
    return quote((url.path or "/") + (f"?{url.query}" if url.query else ""), safe="/%?=&+,;:@")


def excerpt(told: bytes) -> str:
    """The beginning of an answer that nobody expected, in brackets."""
    text = " ".join(told[:200].decode("utf-8", "replace").split())
    return f" ({text})" if text else ""


def read_scores(answer: Any, count: int) -> list[float]:
    """data: one finite score for each index from 0 to count - 1. Raises ValueError that says what is wrong."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        found = f'"data" is {kind_of(data)}' if isinstance(answer, dict) else f"it is {kind_of(answer)}"
        raise ValueError(f"no list of scores: {found}")
    if len(data) != count:
        raise ValueError(f"{len(data)} scores for {count} conversations")
    scores: dict[int, float] = {}
    for item in data:
        index, score = (item.get("index"), item.get("score")) if isinstance(item, dict) else (None, None)
        if type(index) is not int or not 0 <= index < count or index in scores:
            raise ValueError(f"index {json.dumps(index)}: each from 0 to {count - 1} must come once")
        if not isinstance(score, int | float) or isinstance(score, bool) or not is_score(score):
            raise ValueError(f"the score of index {index} is {json.dumps(score)}, not a finite number")
        scores[index] = float(score)
    return [scores[index] for index in range(count)]


def score_list(model: str, scores: Iterable[tuple[int, float]]) -> dict[str, Any]:
    """What a scorer answers to so many (index, score): the same shape that `read_scores` reads."""
    data = [{"index": index, "score": score} for index, score in scores]
    return {"object": "list", "data": data, "model": model}
