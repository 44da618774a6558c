"""A scorer on the loopback for tests: it records its requests and responds with what the test supplies."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], tuple[int, bytes] | tuple[int, bytes, dict[str, str]]]


class Scorer:
    """The server's address and the requests it has received."""

    def __init__(self, url: str):
        self.url = url
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []


@contextmanager
def serving(answer: Answer) -> Iterator[Scorer]:
    """A server whose responses to POST come from `answer`; it stops at the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            scorer.asked.append(body)
            scorer.headers.append({"path": self.path, **self.headers})
            status, content, *headers = answer(body)
            self.send_response(status)
            for name, value in headers[0].items() if headers else ():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has left
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scorer = Scorer(f"http://127.0.0.1:{server.server_port}/v1/score")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield scorer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def by(judge: Callable[[list[dict[str, str]]], float]) -> Answer:
    """Returns a judge's scores, the last conversation first, because only the index gives the order."""

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        data = [{"index": i, "score": judge(messages)} for i, messages in enumerate(body["input"])][::-1]
        return 200, json.dumps({"object": "list", "data": data, "model": body["model"]}).encode()

    return answer


def letters(messages: list[dict[str, str]]) -> float:
    """A simple reward: the response's length, 10 for every e, and .01 for each character of the prompt's last turn."""
    response = messages[-1]["content"]
    return len(response) + 10.0 * response.count("e") + 0.01 * len(messages[-2]["content"])
