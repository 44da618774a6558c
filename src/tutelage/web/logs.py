"""The server's log: one line of JSON per request, on standard error.

    {"time": ..., "level": "info", "message": "request", "request_id": "req_...", "method": "POST",
     "route": "/v1/chat/completions", "status": 200, "ms": 812, "user": "usr_...", "key": "key_...", ...}

A line never holds a text, a path (a sign-in link is a path), a query or a secret. `note` adds a field to the line of
the current request. All other log lines that a request causes carry its id.
"""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

access = logging.getLogger("tutelage.access")
_request: ContextVar[dict[str, Any] | None] = ContextVar("request", default=None)


def begin(request_id: str) -> dict[str, Any]:
    """Start the log line of a request. Returns its fields.

    The line belongs to the current task and the tasks and threads that it starts.
    """
    facts: dict[str, Any] = {"request_id": request_id}
    _request.set(facts)
    return facts


def note(**facts: Any) -> None:
    """Add fields to the log line of the current request, if there is one."""
    current = _request.get()
    if current is not None:
        current.update(facts)


class JSONLines(logging.Formatter):
    """Formats a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        facts = _request.get() or {}
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.name == access.name:
            line |= facts
        else:
            line |= {"logger": record.name} | {name: facts[name] for name in ("request_id",) if name in facts}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def write_json(each_request: bool) -> None:
    """Log the process's warnings and errors to standard error as JSON; with `each_request` also a line per request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    access.setLevel(logging.INFO if each_request else logging.CRITICAL)
