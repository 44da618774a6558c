"""What Prometheus reads at /metrics: counts and times, no text and nobody's name.

The page needs a key with the scope `admin`.
"""

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from tutelage.web.auth import needs
from tutelage.web.envelope import BUCKETS

ACTIVE = Gauge("tutelage_active_answers", "Answers that are being written")
WAITING = Gauge("tutelage_queue_depth", "Answers that wait for the model", ["model"])
TTFT = Histogram("tutelage_ttft_seconds", "From the request to its first token", buckets=BUCKETS)
TOKENS = Counter("tutelage_tokens_total", "Tokens read and written", ["kind", "model"])
WRITE_WAIT = Histogram("tutelage_db_write_wait_seconds", "What a write waits for the writers before it")
REJECTED = Counter("tutelage_rejected_total", "Requests that were turned away", ["reason"])

router = APIRouter()


@router.get("/metrics", dependencies=[Depends(needs("admin"))], include_in_schema=False)
def metrics(request: Request) -> Response:
    models = request.app.state.models
    for name in models.names():
        if engine := models.get(name).engine:
            WAITING.labels(name).set(engine.load()[1])
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
