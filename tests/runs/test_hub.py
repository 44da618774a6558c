"""A base by its id on the hub, with a local server in place of the hub.

The routes are those that huggingface_hub requests: the newest commit, the list of files, and each file.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tutelage.runs.folder import save_policy
from tutelage.text.tokenizer import Tokenizer

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/small-chat"
UNWANTED = {
    "pytorch_model.bin": b"\x80\x02a pickle",
    "model.q8_0.gguf": b"GGUF",
    "README.md": b"# hi",
    "run.py": b"1/0",
}


@dataclass
class Hub:
    """One repository, and the paths that were requested."""

    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body."""
        self.asked.append(path)
        if path == f"/api/models/{NAME}/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            return as_json({"id": NAME, "sha": COMMIT, "siblings": siblings})
        if path == f"/api/models/{NAME}/tree/{COMMIT}":
            tree = [{"type": "file", "path": n, "size": len(b), "oid": digest(b)} for n, b in self.files.items()]
            return as_json(tree)
        body = self.files.get(path.removeprefix(f"/{NAME}/resolve/{COMMIT}/"))
        if body is None:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{digest(body)}"'}, body


def as_json(told: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()


def digest(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@pytest.fixture
def hub(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> Iterator[Hub]:
    """The hub with a model, and files that must not be fetched."""
    save_policy(tmp_path / "theirs", make_gpt("llama"), tokenizer)
    played = Hub({path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()} | UNWANTED)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = played.answer(self.path.partition("?")[0])
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *told: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        played.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield played
        server.shutdown()


def import_from(hub: Hub, name: str, tmp_path: Path, out: str = "run") -> "subprocess.CompletedProcess[str]":
    """Run import-model in a new process, because huggingface_hub reads its settings when it is imported."""
    mine = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    words = [sys.executable, "-m", "tutelage", "import-model", "--base", name, "--out", str(tmp_path / out)]
    return subprocess.run(words, env=settings | mine, cwd=tmp_path, capture_output=True, text=True, timeout=120)


def test_a_mirror_is_used_and_only_weights_and_settings_are_fetched(hub: Hub, tmp_path: Path) -> None:
    done = import_from(hub, NAME, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model.safetensors").read_bytes() == hub.files["model.safetensors"]
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == set(hub.files) - set(UNWANTED)


def test_what_is_fetched_once_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    assert import_from(hub, NAME, tmp_path).returncode == 0
    hub.asked.clear()
    assert import_from(hub, NAME, tmp_path, "again").returncode == 0
    assert hub.asked and not [path for path in hub.asked if "/resolve/" in path]


def test_a_repository_that_is_not_there_is_one_line(hub: Hub, tmp_path: Path) -> None:
    done = import_from(hub, "someone/nosuch", tmp_path)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("someone/nosuch: ") and "the hub has no such repository" in line
    assert "/api/models/someone/nosuch/revision/main" in hub.asked
