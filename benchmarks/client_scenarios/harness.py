"""What the scripts in this folder share. Each runs in the environment of its client, which need not have tutelage.

    python CLIENT.py URL KEY MODEL   ->   {"version": ..., "scenarios": {name: "" or what went wrong}, "figures": ...}

The model may be one of random weights, which answers nonsense. So a scenario rests on what the server guarantees: the
shape of an answer, JSON that fits a schema, and a tool call that was required. Where a client lets the model choose,
any whole answer is right.
"""

import asyncio
import importlib.metadata
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

URL, KEY, MODEL = sys.argv[1:4] if len(sys.argv) > 3 else ("", "", "")
QUESTION = "Where is the cat, and what colour is it?"
TOKENS = 48  # of a free answer
SCENARIOS: dict[str, Callable[[], Any]] = {}

os.environ.update(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=URL)


def scenario(function: Callable[[], Any]) -> Callable[[], Any]:
    """Add a scenario: a function or a coroutine function that raises if the client does not work."""
    SCENARIOS[function.__name__] = function
    return function


def outcome(function: Callable[[], Any]) -> str:
    """Run a scenario. Returns "", or the error with the last lines of its traceback."""
    try:
        asyncio.run(function()) if inspect.iscoroutinefunction(function) else function()
    except BaseException as error:
        print("".join(traceback.format_exception(error)[-4:]), file=sys.stderr)
        return " ".join(f"{type(error).__name__}: {error}".split())[:600]
    return ""


def run(package: str, **figures: Any) -> None:
    """Run all scenarios and print the result."""
    found = {name: outcome(function) for name, function in SCENARIOS.items()}
    print(json.dumps({"version": importlib.metadata.version(package), "scenarios": found, "figures": figures}))
