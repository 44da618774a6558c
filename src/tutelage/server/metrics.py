"""What Prometheus reads at /metrics: counts and times, no text and nobody's name.

The page needs a key with the scope `admin`.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from tutelage.web.auth import needs
from tutelage.web.envelope import BUCKETS

ACTIVE = Gauge("tutelage_active_streams", "Answers that are being written")
WAITING = Gauge("tutelage_queue_depth", "Answers that wait for the model", ["model"])
TTFT = Histogram("tutelage_ttft_seconds", "From the request to its first token", buckets=BUCKETS)
INTER_TOKEN = Histogram("tutelage_inter_token_seconds", "From one token of an answer to its next", buckets=BUCKETS)
TOKENS = Counter("tutelage_tokens_total", "Tokens read and written", ["kind", "model"])
WRITE_WAIT = Histogram("tutelage_db_write_wait_seconds", "What a write waits for the writers before it")
REJECTED = Counter("tutelage_rejected_total", "Requests that were turned away", ["reason"])
FLAGS = Counter(
    "tutelage_moderation_flags_total", "Questions (input) and answers (output) flagged", ["category", "side"]
)
DISK_FREE = Gauge("tutelage_disk_free_bytes", "Room for the SQLite file; NaN: PostgreSQL looks after its own disk")

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
    """Each category once, in however many of these texts it was found."""
    for category in {name for v in verdicts for name, found in v.get("categories", {}).items() if found}:
        FLAGS.labels(category, side).inc()
