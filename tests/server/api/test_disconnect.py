"""Clients that disconnect, over a real socket: their slot is free at once. Also streams, byte by byte."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from live import wait_for

from tutelage.server.sse import EventStream
from tutelage.web import connection, envelope
from tutelage.web.connection import Connection
from tutelage.web.logs import JSONLines


class Listening(uvicorn.Server):
    """Serve an app on a free port, in a thread."""

    def __init__(self, app):
        super().__init__(uvicorn.Config(app, http=Connection, log_config=None, access_log=False))
        self.door = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.run, kwargs={"sockets": [self.door]}, daemon=True)
        self.thread.start()
        wait_for(lambda: self.started)

    def connect(self, secret: str, body: dict) -> socket.socket:
        """Open a connection and send a request."""
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
    for event in events:  # one whole event per write, whatever its characters
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


def test_a_model_that_is_unloaded_meanwhile_says_so(listening, ask) -> None:
    server, s = listening
    stream = server.connect(s.secret, ask | {"stream": True})
    whole = server.connect(s.secret, ask)
    assert stream.recv(20)
    wait_for(lambda: len(s.engine.handles) == 2)
    for handle in s.engine.handles:
        handle.cancelled = True  # not by us: the engine ends its requests when it closes
    assert b'"code":"model_not_found"' in read_all(stream)
    assert read_all(whole).startswith(b"HTTP/1.1 404")


def test_what_had_no_time_at_all_is_no_empty_answer(listening, ask, monkeypatch) -> None:
    monkeypatch.setattr("tutelage.server.generation.SECONDS", 0.1)
    server, s = listening
    s.engine.pause = 0.3
    answer = read_all(server.connect(s.secret, ask))
    assert answer.startswith(b"HTTP/1.1 503") and b"engine_overloaded" in answer


def test_a_bug_in_a_stream_is_its_last_event_and_leaves_no_task_behind() -> None:
    async def events():
        yield b"data: 1\n\n"
        raise KeyError("bug")

    async def receive():
        await asyncio.sleep(60)

    async def run() -> None:
        with pytest.raises(KeyError):
            await EventStream(events())({"type": "http"}, receive, send)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(run())
    assert b'"type":"server_error"' in sent[-1]["body"] and sent[-1]["more_body"]


def at(server: Listening) -> socket.socket:
    return socket.create_connection(server.door.getsockname(), timeout=10)


def test_a_head_that_does_not_end_is_cut_off(listening, monkeypatch) -> None:
    """A request head that is too large or too slow is refused."""
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    server, _ = listening
    endless = at(server)
    with contextlib.suppress(ConnectionError):  # it is refused while it is being sent
        for _ in range(100):
            endless.sendall(b"GET /healthz HTTP/1.1\r\nx-a: " + b"a" * 65_536)
    slow, silent = at(server), at(server)
    slow.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
    begun = time.monotonic()
    assert read_all(slow).startswith(b"HTTP/1.1 408 ") and read_all(silent).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begun < 2
    wait_for(lambda: not server.server_state.connections)


def test_a_large_head_is_refused_and_a_common_one_is_not(listening) -> None:
    server, _ = listening
    for size, status in ((1_000, b"200"), (connection.HEAD_BYTES, b"431")):
        client = at(server)
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n")
        for _ in range(4):
            client.sendall(b"x-a: " + b"a" * (size // 4) + b"\r\n")
            time.sleep(0.01)  # in several packets, as over a network
        with contextlib.suppress(ConnectionError):
            client.sendall(b"\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 " + status)


def test_a_second_request_on_a_connection_has_its_own_time(listening, monkeypatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    server, _ = listening
    client = at(server)
    for _ in range(3):
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        time.sleep(0.2)
        client.sendall(b"host: x\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_body_that_does_not_come_is_not_waited_for(listening, monkeypatch) -> None:
    monkeypatch.setattr(envelope, "BODY_SECONDS", 0.2)
    server, s = listening
    client = at(server)
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", f"authorization: Bearer {s.secret}"]
    client.sendall("\r\n".join([*lines, "content-type: application/json", "content-length: 9", "", "{"]).encode())
    assert client.recv(4096).startswith(b"HTTP/1.1 408")
    long = read_all(server.connect(s.secret, {"model": "stub", "messages": [{"role": "user", "content": "x"}]}))
    assert long.startswith(b"HTTP/1.1 200")  # the limit is on the request, not on the response
