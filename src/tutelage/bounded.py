"""A child process that answers questions within limits of time and memory.

    Child("tutelage.text.trial", memory=512).ask("render", seconds=5.0, template=...)    in the parent
    answer_all({"render": render}, refusals=(InputError,))                                in the child's module

It is for work that may not end, such as rendering a downloaded chat template. The kernel ends a child that exceeds its
time, whatever the child is computing, and the parent's threads and lock are not involved. Beyond the memory limit the
child gets MemoryError or ends. A new child answers the next question. A child ends with its parent: at the end of its
input, or at the latest when its time is over. Questions and answers are lines of JSON.

Any package may import this module.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

START = "import sys; sys.path[:] = {path!r}; from importlib import import_module; import_module({module!r}).main()"
SET_UP_SECONDS = 120.0
MIB = 2**20


class Refused(Exception):
    """The child's function refused its input. The message is its own, in one line."""


class Overrun(Exception):
    """The child exceeded its time or memory, and ended."""


class Failed(Exception):
    """A bug in the child's function. The message is its traceback."""


class Child:
    """The parent's end. The process starts with the first question. Threads may share it: they take turns."""

    def __init__(
        self,
        module: str,
        *,
        memory: int,
        idle: float = 0.0,
        nice: int = 0,
        set_up: Callable[[], dict[str, Any]] | None = None,
    ):
        """module: its `main()` calls `answer_all`; memory: MiB that the child may need beyond those after its set-up;
        idle: seconds without a question after which the child ends, 0 for never; set_up: arguments of the child's
        function `set_up`, which is called first."""
        self._module, self._memory, self._idle, self._nice, self._set_up = module, memory, idle, nice, set_up
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # id of the process that started it; a fork of that process needs its own
        self._closed = False

    def ask(self, job: str, seconds: float, **arguments: Any) -> Any:
        """The answer of a function of the child, which may compute for `seconds`.

        Raises Refused, Overrun or Failed.
        """
        question = json.dumps({"job": job, "seconds": seconds, "arguments": arguments}).encode() + b"\n"
        with self._turn:
            answer = self._exchange(question)
            if answer is None:  # the idle child ended just before it was asked
                answer = self._exchange(question)
        return _opened(answer)

    def close(self) -> None:
        """End the child, even while it is computing. Later questions raise Overrun."""
        self._closed = True
        if process := self._process:
            process.kill()
        with self._turn:
            self._end()

    def _exchange(self, question: bytes) -> bytes | None:
        """The child's answer; None if it ended by itself. Raises Overrun if a signal ended it."""
        process = self._running()
        assert process.stdin and process.stdout
        line = b""
        with suppress(BrokenPipeError):
            process.stdin.write(question)
            process.stdin.flush()
            line = process.stdout.readline()
        if line.endswith(b"\n"):
            return line
        status = self._end()
        if self._closed:
            raise Overrun("closed")
        if status == 0:
            return None
        raise Overrun("time" if status == -signal.SIGPROF else "memory")

    def _end(self) -> int | None:
        """Wait for the process, which ends, and forget it. Returns its status."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin and process.stdout
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait()

    def _running(self) -> "subprocess.Popen[bytes]":
        """The process, started if there is none."""
        if self._closed:
            raise Overrun("closed")
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            code = START.format(path=sys.path, module=self._module)
            limits = [str(self._memory), str(self._idle), str(self._nice)]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},  # a thread per core would need memory of its own
            )
            self._owner = os.getpid()
            arguments = self._set_up() if self._set_up else {}
            first = {"job": "set_up", "seconds": SET_UP_SECONDS, "arguments": arguments}
            _opened(self._exchange(json.dumps(first).encode() + b"\n"))
        return self._process


def _opened(line: bytes | None) -> Any:
    reply = json.loads(line or b'{"failed": "the child ended at once"}')
    if "refused" in reply:
        raise Refused(reply["refused"])
    if "failed" in reply:
        raise Failed(reply["failed"])
    return reply["answer"]


def answer_all(jobs: Mapping[str, Callable[..., Any]], refusals: tuple[type[Exception], ...]) -> None:
    """Answer the parent's questions until its end closes. `refusals`: errors of the functions that concern the user."""
    memory, idle, nice = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    os.nice(nice)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write between the answers
    while not idle or select.select([sys.stdin], [], [], idle)[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        question = json.loads(line)
        function = jobs.get(question["job"], _nothing)
        answers.write(json.dumps(_answer(function, question, refusals)).encode() + b"\n")
        answers.flush()
        if question["job"] == "set_up":
            limit_memory(memory)


def _nothing() -> None:
    """The set-up of a child that needs none."""


def _answer(
    function: Callable[..., Any], question: dict[str, Any], refusals: tuple[type[Exception], ...]
) -> dict[str, Any]:
    signal.setitimer(signal.ITIMER_PROF, question["seconds"])  # of computing, so that a busy machine changes nothing
    try:
        return {"answer": function(**question["arguments"])}
    except refusals as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": "it needs too much memory"}
    except Exception:
        return {"failed": traceback.format_exc()}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory(mib: int) -> None:
    """Let this process have that much more memory than now. Does nothing where that cannot be set."""
    sizes = Path("/proc/self/statm")
    if resource is not None and sizes.exists():
        now = int(sizes.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (now + mib * MIB, now + mib * MIB))
