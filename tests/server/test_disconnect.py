"""Readers that go away, over a real socket: the slot is free at once; a stream as a socket sees it, byte by byte."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from live import wait_for

from tutelage.web.logs import JSONLines


class Listening(uvicorn.Server):
    """An app on a free port, in a thread."""

    def __init__(self, app):
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False))
        self.door = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.run, kwargs={"sockets": [self.door]}, daemon=True)
        self.thread.start()
        wait_for(lambda: self.started)

    def connect(self, secret: str, body: dict) -> socket.socket:
        """A connection with a request sent."""
        content = json.dumps(body).encode()
        lines = [
            "POST /v1/chat/completions HTTP/1.1", "host: x", f"authorization: Bearer {secret}",
            "content-type: application/json", f"content-length: {len(content)}", "connection: close", "", "",
        ]  # fmt: skip
        connection = socket.create_connection(self.door.getsockname(), timeout=10)
        connection.sendall("\r\n".join(lines).encode() + content)
        return connection

    def stop(self) -> None:
        self.should_exit = True
        self.thread.join(10)


@pytest.fixture
def listening(serving) -> Iterator[tuple]:
    s = serving("one two three four five six seven eight nine ten 你好 " * 2, pause=0.01)
    server = Listening(s.app)
    yield server, s
    server.stop()


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while more := connection.recv(65536):
        data += more
    return data


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_leaves_frees_the_slot_within_250_ms(listening, ask, stream: bool) -> None:
    server, s = listening
    connection = server.connect(s.secret, ask | {"stream": stream, "n": 2})
    if stream:
        assert connection.recv(20)
    wait_for(lambda: len(s.engine.handles) == 2)
    time.sleep(0.05)
    left = time.monotonic()
    connection.close()
    wait_for(lambda: len(s.engine.ended) == 2, 2)
    assert [reason for reason, _ in s.engine.ended] == ["cancelled"] * 2
    assert max(when for _, when in s.engine.ended) - left < 0.25


def test_the_log_says_that_a_reader_left(listening, ask, caplog) -> None:
    caplog.handler.setFormatter(JSONLines())
    caplog.set_level("INFO", "tutelage.access")
    server, s = listening
    connection = server.connect(s.secret, ask | {"stream": True})
    assert connection.recv(20)
    connection.close()
    wait_for(lambda: '"route": "/v1/chat/completions"' in caplog.text)
    assert '"gone": true' in caplog.text and '"status": 200' in caplog.text


def test_200_that_leave_and_then_one_that_stays(listening, ask) -> None:
    server, s = listening
    for _ in range(200):
        server.connect(s.secret, ask | {"stream": True}).close()
    begun = time.monotonic()
    answer = read_all(server.connect(s.secret, ask | {"max_tokens": 5}))
    assert answer.startswith(b"HTTP/1.1 200") and time.monotonic() - begun < 5
    wait_for(lambda: s.engine.load()[0] == 0, 3)


def test_the_bytes_of_a_stream(listening, ask) -> None:
    server, s = listening
    head, _, body = read_all(server.connect(s.secret, ask | {"stream": True})).partition(b"\r\n\r\n")
    assert b"content-type: text/event-stream; charset=utf-8" in head and b"content-encoding" not in head
    chunks, rest = [], body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    events = [chunk for chunk in chunks if chunk]
    assert events[-1] == b"data: [DONE]\n\n"
    for event in events:  # one whole event in each write, whatever characters are in it
        assert event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2
        event.decode("utf-8")
    text = "".join(json.loads(event[6:])["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert text.startswith("one two") and "你好" in text


def test_a_quiet_stream_is_kept_open_by_comments(listening, ask, monkeypatch) -> None:
    monkeypatch.setattr("tutelage.server.sse.PING_SECONDS", 0.05)
    server, s = listening
    s.engine.pause = 0.12
    body = read_all(server.connect(s.secret, ask | {"stream": True, "max_tokens": 3}))
    assert body.count(b": ping\n\n") >= 2 and b"data: [DONE]" in body


def test_a_server_that_stops_says_so_in_its_streams(listening, ask) -> None:
    from tutelage.server.generation import shut_down_all

    server, s = listening
    connection = server.connect(s.secret, ask | {"stream": True})
    assert connection.recv(20)
    wait_for(lambda: s.engine.handles)
    shut_down_all()
    body = read_all(connection)
    assert b'"code":"shutting_down"' in body and b"[DONE]" not in body


def test_an_answer_that_takes_too_long_ends_as_length(listening, ask, monkeypatch) -> None:
    monkeypatch.setattr("tutelage.server.generation.SECONDS", 0.1)
    server, s = listening
    body = read_all(server.connect(s.secret, ask))
    choice = json.loads(body.partition(b"\r\n\r\n")[2])["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"]
