"""POST /v1/scores: what a reward model thinks of whole conversations. The shape that RL runs ask HTTP scorers in.

{"model", "input": [messages, ...]}  ->  {"object": "list", "model", "data": [{"index", "score"}, ...]}
"""

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.errors import InputError
from tutelage.server.prepare import Inference, find_model
from tutelage.server.schemas import DOCUMENTED, ScoreRequest
from tutelage.web.errors import JSON, ApiError

router = APIRouter(responses=DOCUMENTED, tags=["scores"])


@router.post("/v1/scores")
async def scores(request: Request, body: ScoreRequest, caller: Inference) -> Response:
    """Score conversations that end with an answer."""
    models = request.app.state.models
    find_model(models, body.model, kind="reward")
    if any(turns[-1].role != "assistant" for turns in body.input):
        message = "Every conversation must end with an assistant's answer: that is what is scored."
        raise ApiError(400, message, param="input", code="invalid_value")
    conversations = [[turn.message() for turn in turns] for turns in body.input]
    try:
        found = await run_in_threadpool(models.score, body.model, conversations)
    except InputError as error:
        raise ApiError(400, str(error), param="input", code="invalid_value") from None
    data = [{"index": index, "score": score} for index, score in enumerate(found)]
    return JSON({"object": "list", "model": body.model, "data": data})
