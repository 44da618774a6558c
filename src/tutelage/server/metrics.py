"""Metrics for Prometheus at /metrics: counts and times, without anybody's texts, names or ids.

The route needs a key with the scope `admin`.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from tutelage.web.auth import needs
from tutelage.web.envelope import BUCKETS

ACTIVE = Gauge("tutelage_active_streams", "Completions in progress")
WAITING = Gauge("tutelage_queue_depth", "Completions waiting for the model", ["model"])
TTFT = Histogram("tutelage_ttft_seconds", "Time from a request to its first token", buckets=BUCKETS)
INTER_TOKEN = Histogram(
    "tutelage_inter_token_seconds", "Time from one token of a completion to the next", buckets=BUCKETS
)
TOKENS = Counter("tutelage_tokens_total", "Tokens read (prompt) and generated (completion)", ["kind", "model"])
WRITE_WAIT = Histogram("tutelage_db_write_wait_seconds", "Time that a write waits for earlier writes")
REJECTED = Counter("tutelage_rejected_total", "Requests rejected", ["reason"])
FLAGS = Counter(
    "tutelage_moderation_flags_total",
    "Requests with a flagged prompt (input) or completion (output)",
    ["category", "side"],
)
DISK_FREE = Gauge("tutelage_disk_free_bytes", "Free disk space for the SQLite file; NaN with PostgreSQL")

router = APIRouter()


@router.get("/metrics", dependencies=[Depends(needs("admin"))], include_in_schema=False)
def metrics(request: Request) -> Response:
    models = request.app.state.registry
    for name in models.names():
        if engine := models.get(name).engine:
            WAITING.labels(name).set(engine.load()[1])
    free = request.app.state.database.free_bytes
    DISK_FREE.set(math.nan if free is None else free)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def count_flags(side: Literal["input", "output"], verdicts: Iterable[dict[str, Any]]) -> None:
    """Count each flagged category once, however many of these verdicts flag it."""
    for category in {name for v in verdicts for name, flagged in v.get("categories", {}).items() if flagged}:
        FLAGS.labels(category, side).inc()
