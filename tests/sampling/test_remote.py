"""The terminal's client against a real HTTP server on loopback that speaks OpenAI's event stream byte by byte."""

import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tutelage.errors import InputError
from tutelage.sampling.remote import ContextFullError, RemoteModel
from tutelage.terminal.chat import chat
from tutelage.terminal.conversation import ChatConfig

KEY = "sk-right"


def event(content: str) -> bytes:
    """As the API sends it: one line of JSON and an empty line. Text is not escaped."""
    return ("data: " + json.dumps({"choices": [{"delta": {"content": content}}]}, ensure_ascii=False) + "\n\n").encode()


class Api(BaseHTTPRequestHandler):
    """Repeats the last message, letter by letter; at most three messages fit."""

    protocol_version = "HTTP/1.1"
    requests: list[dict] = []
    sent: list[float] = []

    def do_GET(self) -> None:
        if self.path.startswith("/page"):
            return self._send(200, b"<html>not an API</html>")
        judge = {"id": "judge", "kind": "reward"}
        return self._json(200, {"object": "list", "data": [judge, {"id": "tiny"}, {"id": "other"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append(body)
        said = body["messages"][-1]["content"]
        if self.headers["authorization"] != f"Bearer {KEY}":
            return self._json(401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}})
        if said == "strict" and "min_p" in body:  # as OpenAI's API refuses a field that it does not know
            message = "Unrecognized request argument supplied: min_p"
            return self._json(400, {"error": {"message": message, "code": None}})
        if len(body["messages"]) > 3:
            return self._json(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in self._events(said):
            for half in filter(None, (piece[:9], piece[9:])):  # an event may come in two parts
                self.wfile.write(b"%x\r\n%b\r\n" % (len(half), half))
                self.wfile.flush()
        if said in ("hang up", "die"):
            self.close_connection = True
            return None
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _events(self, said: str) -> Iterator[bytes]:
        yield b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
        yield b": ping\n\n"
        for letter in said:
            self.sent.append(time.monotonic())
            yield event(letter)
        if said == "die":
            self.wfile.write(b"fff\r\ndata: half an event")  # killed in the middle of a chunk
        if said in ("hang up", "die"):
            return
        if said == "break":
            yield b'data: {"error": {"message": "engine lost"}}\n\n'
        yield b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\ndata: [DONE]\n\n'

    def _json(self, status: int, body: dict) -> None:
        self._send(status, json.dumps(body).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Api.requests.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(server: RemoteModel, *contents: str) -> Iterator[str]:
    return server.answer({"messages": [{"role": "user", "content": content} for content in contents]})


def test_the_stream_is_read_piece_by_piece(address: str) -> None:
    server = RemoteModel(address + "/v1/", KEY)
    assert list(ask(server, "日本 ok")) == ["", *"日本 ok", ""]
    assert Api.requests[-1]["model"] == "tiny" and Api.requests[-1]["stream"] is True


def test_refusals_say_what_the_server_says(address: str) -> None:
    with pytest.raises(InputError, match="401 Incorrect API key; give the key with --key-file"):
        list(ask(RemoteModel(address), "x"))
    with pytest.raises(InputError, match="argument supplied: min_p; leave it out with --min-p 0"):
        list(RemoteModel(address, KEY).answer({"messages": [{"role": "user", "content": "strict"}], "min_p": 0.1}))
    with pytest.raises(ContextFullError):
        list(ask(RemoteModel(address, KEY), *"abcd"))
    with pytest.raises(InputError, match="engine lost"):
        list(ask(RemoteModel(address, KEY), "break"))
    with pytest.raises(InputError, match="is the server running there"):
        RemoteModel("http://127.0.0.1:9")
    with pytest.raises(InputError, match="not the address"):
        RemoteModel("http:/typo")


@pytest.mark.parametrize("end", ["hang up", "die"])
def test_an_answer_that_breaks_off_is_no_answer(address: str, end: str) -> None:
    with pytest.raises(InputError, match="broke off"):
        list(ask(RemoteModel(address, KEY), end))


def test_another_kind_of_server_is_recognised(address: str) -> None:
    with pytest.raises(InputError, match="not an OpenAI-compatible API"):
        RemoteModel(address + "/page")


def test_the_first_model_that_writes_is_taken(address: str) -> None:
    assert RemoteModel(address).model == "tiny"


def test_a_chat_with_a_server(address: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(KEY + "\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n/top-k 5\nbreak\nhang up\nthree\n"))
    chat(address, ChatConfig(key_file=tmp_path / "key", model="other", temperature=0.5))
    printed = capsys.readouterr().out
    assert [printed.count(f"gpt> {word}") for word in ("one", "two", "three")] == [1, 1, 1]
    assert "(the server stopped with an error: engine lost)" in printed
    assert "(the context is full: the model no longer sees 'one')" in printed
    first, last = Api.requests[0], Api.requests[-1]
    assert first["model"] == "other" and first["temperature"] == 0.5 and "top_k" not in first
    assert last["top_k"] == 5 and last["seed"] != first["seed"]
    assert [message["content"] for message in last["messages"]] == ["two", "two", "three"]
