"""The HTTP scorer client against a real server on the loopback: shapes, batches, retries and failures."""

import email.utils
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from scorer_server import Answer, by, letters, serving
from world import assistant, user

from tutelage.errors import InputError
from tutelage.rewards import http as wire
from tutelage.rewards.http import HTTPReward, read_scores, score_list
from tutelage.store.tables import ApiKey
from tutelage.web.errors import ApiError
from tutelage.web.limits import Limits


def talks(count: int) -> list[list[dict[str, str]]]:
    return [[user(f"what is {i}?"), assistant("e" * (i % 7) + "中文 \u2028")] for i in range(count)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PAUSE", 0.0)


def one_line(error: InputError) -> str:
    assert "\n" not in str(error)
    return str(error)


def refusal(status: int, content: bytes, count: int = 2) -> tuple[str, int]:
    """The error for a scorer that always responds like this, and the number of requests it received."""
    with serving(lambda body: (status, content)) as scorer:
        with pytest.raises(InputError) as error:
            HTTPReward(scorer.url)(talks(count))
        assert scorer.url in str(error.value)
        return one_line(error.value), len(scorer.asked)


def test_requests_and_responses() -> None:
    with serving(by(letters)) as scorer:
        assert HTTPReward(scorer.url + "?k=2#helpful")(talks(70)) == [letters(talk) for talk in talks(70)]
        assert [set(body) for body in scorer.asked] == [{"model", "input"}] * 3
        assert [len(body["input"]) for body in scorer.asked] == [32, 32, 6]
        assert [talk for body in scorer.asked for talk in body["input"]] == talks(70)
        assert {body["model"] for body in scorer.asked} == {"helpful"}
        assert all(h["Content-Type"] == "application/json" and h["path"] == "/v1/score?k=2" for h in scorer.headers)
        assert HTTPReward(scorer.url)([]) == [] and len(scorer.asked) == 3
        HTTPReward(scorer.url)(talks(1))
        assert scorer.asked[-1]["model"] == "reward"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_may_pass_is_retried_a_few_times(status: int) -> None:
    said: list[int] = []

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        said.append(1)
        return (status, b"not now") if len(said) < 4 else by(letters)(body)

    with serving(answer) as scorer:
        assert HTTPReward(scorer.url)(talks(2)) == [letters(talk) for talk in talks(2)]
    assert len(said) == 4
    line, asked = refusal(status, b"not\nnow")
    assert f"status {status} (not now), 4 times" in line and asked == 4


@pytest.mark.parametrize(
    ("status", "move"),
    [(204, "check the URL"), (302, "check the URL"), (400, "check the URL"), (404, "check the URL"),
     (401, "give --reward-key-file"), (403, "give --reward-key-file")],
)  # fmt: skip
def test_a_failure_that_will_not_pass_is_not_retried(status: int, move: str) -> None:
    line, asked = refusal(status, b"")
    assert f"status {status}; {move}" in line and asked == 1


def data(*items: Any) -> bytes:
    return json.dumps({"object": "list", "data": list(items)}).encode()


GOOD = {"index": 0, "score": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>hello", "not JSON (<html>hello)"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"", "not JSON;"),
        (b"[1, 2]", "no list of scores: the response is a list"),
        (b'{"scores": [1, 2]}', 'no list of scores: "data" is missing'),
        (data(GOOD), "1 scores for 2 conversations"),
        (data(GOOD, {"index": 1, "score": 2}, {"index": 2, "score": 2}), "3 scores for 2 conversations"),
        (data(GOOD, GOOD), "index 0: each from 0 to 1 must appear once"),
        (data(GOOD, {"index": 2, "score": 1}), "index 2: each from 0 to 1"),
        (data(GOOD, {"index": -1, "score": 1}), "index -1: each"),
        (data(GOOD, {"index": True, "score": 1}), "index true: each"),
        (data(GOOD, {"index": 1.0, "score": 1}), "index 1.0: each"),
        (data(GOOD, {"score": 1}), "index null: each"),
        (data(GOOD, 3), "index null: each"),
        (data(GOOD, {"index": 1, "score": float("nan")}), "the score of index 1 is NaN, not a finite number"),
        (data(GOOD, {"index": 1, "score": 10**400}), "the score of index 1 is 1000"),
        (data(GOOD, {"index": 1, "score": -1e39}), "is -1e+39, not a finite number"),
        (data(GOOD, {"index": 1, "score": "2"}), 'is "2", not a finite number'),
        (data(GOOD, {"index": 1, "score": True}), "is true, not a finite number"),
        (data(GOOD, {"index": 1}), "is null, not a finite number"),
    ],
)  # fmt: skip
def test_another_shape_is_one_line_and_not_retried(content: bytes, said: str) -> None:
    line, asked = refusal(200, content)
    assert said in line and asked == 1


def test_an_endless_response_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BODY", 100)
    assert "longer than 100 bytes" in refusal(200, b" " * 101)[0]


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_no_server_there() -> None:
    with pytest.raises(InputError, match="the request failed .*refused.*, 4 times; check that the scorer is running"):
        HTTPReward(f"http://127.0.0.1:{closed_port()}/")(talks(1))


def test_a_server_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "TIMEOUT", 0.1)
    with serving(lambda body: (time.sleep(1), (200, b""))[1]) as scorer:
        begun = time.monotonic()
        with pytest.raises(InputError, match="the request failed .*timed out.*, 4 times"):
            HTTPReward(scorer.url)(talks(1))
        assert time.monotonic() - begun < 0.9


@pytest.mark.parametrize("spoken", [b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", b"SSH-2.0-x\r\n", b""])
def test_a_server_that_hangs_up(spoken: bytes) -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def speak() -> None:
        for _ in range(wire.ATTEMPTS):
            with listening.accept()[0] as talk:
                talk.recv(65536)
                talk.sendall(spoken)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    with listening, pytest.raises(InputError, match="the request failed") as error:
        HTTPReward(f"http://127.0.0.1:{listening.getsockname()[1]}/s")(talks(1))
    thread.join()
    one_line(error.value)


@pytest.mark.parametrize("url", ["http://", "http://h:99999/", "http://h:x/", "http://[h/", "https:///score"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(InputError, match="give http://HOST:PORT/PATH"):
        HTTPReward(url)


def test_the_printed_shape_is_the_shape_read() -> None:
    answer = score_list("m", enumerate([1.5, -2.0]))
    assert answer == {
        "object": "list", "data": [{"index": 0, "score": 1.5}, {"index": 1, "score": -2.0}], "model": "m",
    }  # fmt: skip
    assert read_scores(json.loads(json.dumps(answer)), 2) == [1.5, -2.0]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, recorded instead of slept through."""
    waited: list[float] = []
    monkeypatch.setattr(wire, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))
    monkeypatch.setattr(wire, "PAUSE", 0.5)
    return waited


def after(*waits: str | None, status: int = 429) -> Answer:
    """Refuses once for each value, with that Retry-After, and then returns scores."""
    said: list[str] = []

    def answer(body: dict[str, Any]) -> Any:
        if len(said) == len(waits):
            return by(letters)(body)
        wait = waits[len(said)]
        said.append("refused")
        return status, b"not now", {} if wait is None else {"Retry-After": wait}

    return answer


def in_seconds(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


LONG_AGO, LATER = "Tue, 02 Jan 2001 03:04:05 GMT", "Wed, 02 Jan 2999 03:04:05 GMT"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("7", 7, 7), ("1", 1, 1), (LATER, 60, 60), ("119", 60, 60), ("9" * 5000, 60, 60),
        ("0", 0.5, 0.5), (LONG_AGO, 0.5, 0.5), ("soon", 0.5, 0.5), ("-7", 0.5, 0.5), ("", 0.5, 0.5),
    ],
)  # fmt: skip
def test_retry_after_is_followed(waits: list[float], status: int, said: str, least: float, most: float) -> None:
    with serving(after(said, status=status)) as scorer:
        assert HTTPReward(scorer.url)(talks(2)) == [letters(talk) for talk in talks(2)]
    assert len(waits) == 1 and least <= waits[0] <= most


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_retry_after_dates_are_in_utc(zone: str) -> None:
    date = in_seconds(30).replace("GMT", zone)
    assert 25 < wire.seconds_until(date) <= 30


def test_retry_after_never_shortens_a_wait(waits: list[float]) -> None:
    with serving(after(None, None, None, "1", "5")) as scorer:
        HTTPReward(scorer.url)(talks(1))
    assert waits == [0.5, 1.0, 2.0, 2.0, 5.0]


def test_total_waiting_is_limited(waits: list[float]) -> None:
    with serving(after(*["119"] * 5)) as scorer:
        assert HTTPReward(scorer.url)(talks(1)) == [letters(talks(1)[0])]
    assert waits == [60.0] * 5
    waits.clear()
    with serving(after(*["119"] * 6)) as scorer:
        waiting = r"and the server asks to wait for more than 300 s in total; raise its rate limit, or resume later"
        with pytest.raises(InputError, match=rf"status 429 \(not now\), {waiting}"):
            HTTPReward(scorer.url)(talks(1))
    assert waits == [60.0] * 5


def test_our_own_servers_retry_after_is_read() -> None:
    limits, key = Limits(), ApiKey(id="k", requests_per_minute=1)
    limits.request(key)
    with pytest.raises(ApiError) as error:
        limits.request(key)
    exact = int(error.value.headers["retry-after-ms"]) / 1000
    assert 0 < exact - 0.01 <= wire.seconds_until(error.value.headers["retry-after"]) <= 120


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, even where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_wait() -> None:
    main = threading.main_thread().ident
    assert main
    with serving(after("60")) as scorer:
        timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            HTTPReward(scorer.url)(talks(1))
    assert 0.4 < time.monotonic() - begun < 10


def test_each_read_has_the_time_that_is_left() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5.0)
        read = wire.DeadlineReader(ours, ours.makefile("rb", buffering=0))
        time.sleep(0.1)
        theirs.sendall(b"ab")
        assert read.read(1) == b"a" and 4.0 < (first := ours.gettimeout()) <= 4.9
        time.sleep(0.1)
        assert read.read(1) == b"b" and 4.0 < ours.gettimeout() <= first - 0.1
        read.deadline -= 5.0
        with pytest.raises(TimeoutError):
            read.read(1)


@contextmanager
def dripping(spoken: bytes, drop: bytes) -> Iterator[str]:
    """A server that sends `spoken` at once and then `drop` every 20 ms until the client leaves, for 10 s at most."""
    listening = socket.create_server(("127.0.0.1", 0))

    def speak() -> None:
        with listening.accept()[0] as talk:
            talk.recv(65536)
            try:
                talk.sendall(spoken)
                for _ in range(500):
                    talk.sendall(drop)
                    time.sleep(0.02)
            except OSError:
                pass  # it hung up

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    with listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/s"
        thread.join()


@pytest.mark.parametrize(
    ("spoken", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["first line", "headers", "known length", "until it closes", "chunks"],
)
def test_a_server_that_sends_too_slowly_times_out(monkeypatch: pytest.MonkeyPatch, spoken: bytes, drop: bytes) -> None:
    """Each read returns in time, but the whole response does not."""
    monkeypatch.setattr(wire, "TIMEOUT", 0.3)
    monkeypatch.setattr(wire, "ATTEMPTS", 1)
    begun = time.monotonic()
    with dripping(spoken, drop) as url, pytest.raises(InputError, match="the request failed .*timed out"):
        HTTPReward(url)(talks(1))
    assert 0.2 < time.monotonic() - begun < 3
