"""POST /v1/moderations: what the term lists and the classifier say of texts, in OpenAI's shape."""

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.server.api.schemas import DOCUMENTED, ModerationRequest
from tutelage.store.ids import new_id
from tutelage.web.auth import Inference
from tutelage.web.errors import JSON, ApiError

MODEL = "tutelage-moderation"

router = APIRouter(responses=DOCUMENTED, tags=["moderations"])


@router.post("/v1/moderations")
async def moderations(request: Request, body: ModerationRequest, caller: Inference) -> Response:
    """Judge texts. A list of parts is one input, as in OpenAI's API; images are refused."""
    verdicts = await run_in_threadpool(request.app.state.moderator.check, texts_of(body))
    results = [verdict | {"category_applied_input_types": {name: ["text"] for name in verdict["categories"]}}
               for verdict in verdicts]  # fmt: skip
    return JSON({"id": new_id("modr-"), "model": body.model or MODEL, "results": results})


def texts_of(body: ModerationRequest) -> list[str]:
    if isinstance(body.input, str):
        return [body.input]
    texts = [part for part in body.input if isinstance(part, str)]
    parts = [part for part in body.input if not isinstance(part, str)]
    if any(part.type != "text" or part.text is None for part in parts):
        raise ApiError(400, "Only text is judged here.", param="input", code="unsupported_value")
    return texts + (["\n".join(part.text or "" for part in parts)] if parts else [])
