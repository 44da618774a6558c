"""What the server says of its work: lines of JSON on standard error, one for each request.

    {"time": ..., "level": "info", "message": "request", "request_id": "req_...", "method": "POST",
     "route": "/v1/chat/completions", "status": 200, "ms": 812, "user": "usr_...", "key": "key_...", ...}

Never what anybody said: no text, no path (the link that signs in is one), no query, no secret. Whatever else is logged
while a request is answered carries its id, too; `note` adds a fact to the request's own line.
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
    """From here on this task, and the threads and tasks it starts, answer this request: what is known of it."""
    facts: dict[str, Any] = {"request_id": request_id}
    _request.set(facts)
    return facts


def note(**facts: Any) -> None:
    """Add to the line of the request that is being answered, if one is."""
    known = _request.get()
    if known is not None:
        known.update(facts)


class JSONLines(logging.Formatter):
    """One record, one line."""

    def format(self, record: logging.LogRecord) -> str:
        known = _request.get() or {}
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "message": record.getMessage(),
        }  # fmt: skip
        if record.name == access.name:
            line |= known
        else:
            line |= {"logger": record.name} | {name: known[name] for name in ("request_id",) if name in known}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def write_json(each_request: bool) -> None:
    """Warnings and errors of the whole process go to standard error as JSON, and so does a line for each request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    access.setLevel(logging.INFO if each_request else logging.CRITICAL)
