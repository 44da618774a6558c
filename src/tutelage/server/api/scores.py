"""POST /v1/scores: what a reward model thinks of whole conversations. The shape that RL runs ask HTTP scorers in.

{"model", "input": [messages, ...]}  ->  {"object": "list", "model", "data": [{"index", "score"}, ...]}
"""

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.data.rankings import encode_response
from tutelage.data.records import Messages
from tutelage.errors import InputError
from tutelage.server.api.schemas import DOCUMENTED, ScoreRequest
from tutelage.server.registry import find_model, no_such_model
from tutelage.server.sse import answer_or_gone
from tutelage.text.tokenizer import Tokenizer
from tutelage.web.auth import Caller, Inference
from tutelage.web.errors import JSON, ApiError

router = APIRouter(responses=DOCUMENTED, tags=["scores"])


@router.post("/v1/scores")
async def scores(request: Request, body: ScoreRequest, caller: Inference) -> Response:
    """Score conversations that end with an answer."""
    registry = request.app.state.registry
    find_model(registry, body.model, kind="reward")
    if any(turns[-1].role != "assistant" for turns in body.input):
        message = "Every conversation must end with an assistant's answer: that is what is scored."
        raise ApiError(400, message, param="input", code="invalid_value")
    conversations = [[turn.message() for turn in turns] for turns in body.input]
    return await answer_or_gone(request, scored(request, body.model, conversations, caller))


async def scored(request: Request, model: str, conversations: list[Messages], caller: Caller) -> Response:
    """Within the key's limits, one call at a time: those that wait take no thread from others."""
    assert caller.key
    state = request.app.state
    try:
        tokens = await run_in_threadpool(count, state.registry.get(model).tokenizer, conversations)
        with state.limits.generation(caller.key, tokens) as spent:
            found = await to_thread.run_sync(state.registry.score, model, conversations, limiter=state.scoring)
            spent.tokens = tokens
    except InputError as error:
        raise ApiError(400, str(error), param="input", code="invalid_value") from None
    except KeyError:
        raise no_such_model(model) from None
    data = [{"index": index, "score": score} for index, score in enumerate(found)]
    return JSON({"object": "list", "model": model, "data": data})


def count(tokenizer: Tokenizer, conversations: list[Messages]) -> int:
    return sum(len(encode_response(turns[:-1], turns[-1]["content"], tokenizer)) for turns in conversations)
