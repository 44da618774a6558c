"""Runs a real `tutelage serve` in a separate process, and reads its output."""

import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from openai import APIConnectionError, APIError, OpenAI

from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.runs.folder import save_policy
from tutelage.text.bpe import train_bpe

DOCS = Path(__file__).parents[2] / "docs"
SHAPE: dict[str, Any] = dict(width=64, layers=2, heads=2, kv_heads=1, head_width=32, hidden=128, context=16384)


def random_model(folder: Path) -> Path:
    """A run of random weights whose context holds the long prompts of agents."""
    tokenizer = train_bpe([path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))], 2048)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **SHAPE)).initialise(torch.Generator().manual_seed(1))
    folder.mkdir()
    save_policy(folder, model, tokenizer)
    return folder


class Live:
    """Started with `Live(folder, "chat=runs/sft", ...)`; stops by itself when the test process ends."""

    def __init__(self, folder: Path, *words: str):
        self.folder = folder
        self.log = open(folder / "serve.log", "a+")  # noqa: SIM115 (lives as long as the server)
        command = [sys.executable, "-m", "tutelage", "serve", *words, "--port", "0", "--data", str(folder / "data")]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        self.printed = self.read_until("chat page")
        self.url = self.find(r"API +(http://\S+)/v1")
        self.link = self.find(r"chat page +(\S+)")
        self._key = ""

    def read_until(self, last: str) -> str:
        assert self.process.stdout
        printed = ""
        for line in self.process.stdout:
            printed += line
            if line.startswith(last):
                return printed
        raise AssertionError(f"the server did not start: {printed} {Path(self.log.name).read_text()}")

    @property
    def key(self) -> str:
        """The first API key, which only the first start prints."""
        assert self.process.stdout
        self._key = self._key or re.findall(r"sk-[\w-]+", next(self.process.stdout))[0]
        return self._key

    def find(self, pattern: str) -> str:
        found = re.search(pattern, self.printed)
        assert found, self.printed
        return found[1]

    def stop(self) -> int:
        """Send SIGTERM and wait. Returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        self.log.close()
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def wait_for(condition, seconds: float = 5.0) -> None:
    """Wait until a condition holds. Fails if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.02)


def kill_rounds(folder: Path, words: Sequence[str], rounds: int, seed: int = 0) -> tuple[int, int]:
    """Start, store completions, kill -9 in the middle, start again. Returns (acknowledged, lost) over all rounds."""
    chance = random.Random(seed)
    acknowledged, lost = 0, 0
    server = Live(folder, *words)
    secret = server.key
    for _ in range(rounds):
        kept = kept_until_killed(server, secret, chance.uniform(0, 0.5))
        server = Live(folder, *words)
        newest = client_of(server, secret).chat.completions.list(limit=100, order="desc")
        known = {item.id for item in itertools.islice(newest, len(kept) + 20)}
        acknowledged += len(kept)
        lost += len(set(kept) - known)
    assert server.stop() == 0
    return acknowledged, lost


def kept_until_killed(server: Live, secret: str, seconds: float) -> list[str]:
    """Four clients store completions until the server is killed. Returns the acknowledged ones."""
    kept: list[str] = []
    writers = [threading.Thread(target=keep_until_it_dies, args=(server, secret, kept)) for _ in range(4)]
    for writer in writers:
        writer.start()
    wait_for(lambda: len(kept) > 4, 30)
    time.sleep(seconds)
    server.kill()
    for writer in writers:
        writer.join()
    return kept


def client_of(server: Live, secret: str) -> OpenAI:
    return OpenAI(base_url=server.url + "/v1", api_key=secret, max_retries=0, timeout=20)


def keep_until_it_dies(server: Live, secret: str, kept: list[str]) -> None:
    """Store completions one by one. An id is noted when its response has arrived whole."""
    client = client_of(server, secret)
    with contextlib.suppress(APIConnectionError, APIError):
        while True:
            answer = client.chat.completions.create(
                model="chat", messages=[{"role": "user", "content": "where is the cat?"}], max_tokens=2, store=True
            )
            kept.append(answer.id)
