"""A child process with limits: it ends itself, and the next question is answered."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tutelage.bounded import Child, Failed, Overrun, Refused

CHILD = """
import os, time
from tutelage.bounded import answer_all
def count(n):
    for i in range(n): pass
    return [n, os.getpid()]
def text(n): return len("x" * n)
def refuse(): raise KeyError("no")
def fail(): raise ValueError("a bug")
def hold(words): return [given["words"], words]
given = {}
def set_up(**more): given.update(more)
def main():
    answer_all({f.__name__: f for f in (count, text, refuse, fail, hold, set_up)}, (KeyError,))
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """child(...): a child process of the module above."""
    (tmp_path / "a_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(tmp_path)
    made: list[Child] = []

    def make(**more) -> Child:
        made.append(Child("a_child", **{"memory": 64} | more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_answers_refusals_and_bugs(child) -> None:
    it = child(set_up=lambda: {"words": ["你\ud800\n"]})
    assert it.ask("hold", 1.0, words="a\nb") == [["你\ud800\n"], "a\nb"]
    with pytest.raises(Refused, match="no"):
        it.ask("refuse", 1.0)
    with pytest.raises(Failed, match="ValueError: a bug"):
        it.ask("fail", 1.0)
    assert it.ask("count", 1.0, n=2)[0] == 2


def test_what_takes_too_long_or_too_much_ends_itself(child) -> None:
    it = child()
    _, first = it.ask("count", 1.0, n=2)
    began = time.monotonic()
    with pytest.raises(Overrun, match="time"):
        it.ask("count", 0.1, n=10**9)
    assert time.monotonic() - began < 2
    _, second = it.ask("count", 1.0, n=2)
    assert second != first
    with pytest.raises(Refused, match="memory"):
        it.ask("text", 1.0, n=100_000_000)
    assert it.ask("text", 1.0, n=10_000_000) == 10_000_000


def test_an_idle_child_ends_and_another_one_answers(child) -> None:
    it = child(idle=0.05)
    _, first = it.ask("count", 1.0, n=2)
    process = it._process
    assert process.wait(5) == 0
    assert it.ask("count", 1.0, n=2)[1] != first


def test_a_closed_child_ends_while_it_computes(child) -> None:
    it = child()
    _, pid = it.ask("count", 1.0, n=2)
    it.close()
    with pytest.raises(Overrun, match="closed"):
        it.ask("count", 1.0, n=2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


PARENT = """
import sys, threading
from tutelage.bounded import Child
it = Child("a_child", memory=64)
print(it.ask("count", 1.0, n=2)[1], flush=True)
it.ask("count", 1.0, n=10**9)
"""


def test_a_child_that_computes_ends_after_its_parent(child, tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {PARENT}"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < end, os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
