"""POST /v1/moderations: the verdicts of the term lists and the classifier on texts, in OpenAI's shape."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from tutelage.server.api.schemas import DOCUMENTED, ModerationRequest
from tutelage.store.ids import new_id
from tutelage.web.auth import Inference
from tutelage.web.errors import JSON, ApiError
from tutelage.web.limits import estimated_tokens

MODEL = "tutelage-moderation"

router = APIRouter(responses=DOCUMENTED, tags=["moderations"])


@router.post("/v1/moderations")
async def moderations(request: Request, body: ModerationRequest, caller: Inference) -> Response:
    """Check texts. As in OpenAI's API, a list of parts is one input. Images are refused.

    A text costs as many of the key's tokens as it usually has.
    """
    assert caller.key
    state, texts = request.app.state, texts_of(body)
    state.limits.spend(caller.key, estimated_tokens(sum(map(len, texts))))
    verdicts = await state.text_work.verdicts(caller.queue, texts)
    for verdict in verdicts:
        verdict["category_applied_input_types"] = {name: ["text"] for name in verdict["categories"]}
    return JSON({"id": new_id("modr-"), "model": body.model or MODEL, "results": verdicts})


def texts_of(body: ModerationRequest) -> list[str]:
    """The texts of the input; all parts together are one text. Raises ApiError for a part that is not text."""
    if isinstance(body.input, str):
        return [body.input]
    texts = [part for part in body.input if isinstance(part, str)]
    parts = [part for part in body.input if not isinstance(part, str)]
    if any(part.type != "text" or part.text is None for part in parts):
        raise ApiError(400, "This server moderates only text.", param="input", code="unsupported_value")
    return texts + (["\n".join(part.text or "" for part in parts)] if parts else [])
