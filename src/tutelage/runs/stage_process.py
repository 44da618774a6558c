"""A stage as a child process: reading its messages, its exit status and peak memory, and stopping it.

Popen  ->  messages (progress as JSON, or lines of text)  ->  exit status, peak bytes
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

INTERRUPTED = 130  # exit status of a stage that was interrupted
STOP_PATIENCE = 60.0  # seconds that a stage has to save after Ctrl-C


def read_messages(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The lines that a stage prints: its JSON messages as they are, any other line as {"text": line}."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            try:
                message = json.loads(line)
            except json.JSONDecodeError:
                message = None
            yield message if isinstance(message, dict) and "stage" in message else {"text": line.rstrip()}


def wait(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Wait for a child to end; return its exit status and its peak resident memory in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def stop(process: subprocess.Popen[str]) -> None:
    """Let the stage save and stop, or kill it after STOP_PATIENCE.

    Ctrl-C in a terminal has already reached the stage. A signal to this process alone has not, so SIGTERM is sent if
    the stage is still running after half a second.
    """
    if process.poll() is None:
        time.sleep(0.5)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
