"""POST /v1/scores: a reward model's scores of conversations, in the shape that RL runs expect of HTTP scorers.

{"model", "input": [messages, ...]}  ->  {"object": "list", "model", "data": [{"index", "score"}, ...]}
"""

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.data.messages import Messages
from tutelage.data.rankings import encode_response
from tutelage.errors import InputError
from tutelage.server.api.chat_schemas import ScoreRequest
from tutelage.server.api.schemas import DOCUMENTED
from tutelage.server.registry import find_model, no_such_model
from tutelage.server.sse import respond_until_disconnect
from tutelage.text.tokenizer import Tokenizer
from tutelage.web.auth import Caller, Inference
from tutelage.web.errors import JSON, ApiError

router = APIRouter(responses=DOCUMENTED, tags=["scores"])


@router.post("/v1/scores")
async def scores(request: Request, body: ScoreRequest, caller: Inference) -> Response:
    """Score conversations that end with an assistant's message."""
    registry = request.app.state.registry
    find_model(registry, body.model, kind="reward")
    if any(turns[-1].role != "assistant" for turns in body.input):
        message = "Every conversation must end with an assistant's message, which is what is scored."
        raise ApiError(400, message, param="input", code="invalid_value")
    conversations = [[turn.message() for turn in turns] for turns in body.input]
    return await respond_until_disconnect(request, score(request, body.model, conversations, caller))


async def score(request: Request, model: str, conversations: list[Messages], caller: Caller) -> Response:
    """Score within the key's limits. Calls run one at a time, and waiting ones occupy no thread."""
    assert caller.key
    state = request.app.state
    try:
        tokens = await run_in_threadpool(count_tokens, state.registry.get(model).tokenizer, conversations)
        with state.limits.generation(caller.key, tokens) as spent:
            results = await to_thread.run_sync(state.registry.score, model, conversations, limiter=state.scoring)
            spent.tokens = tokens
    except InputError as error:
        raise ApiError(400, str(error), param="input", code="invalid_value") from None
    except KeyError:
        raise no_such_model(model) from None
    data = [{"index": index, "score": result} for index, result in enumerate(results)]
    return JSON({"object": "list", "model": model, "data": data})


def count_tokens(tokenizer: Tokenizer, conversations: list[Messages]) -> int:
    return sum(len(encode_response(turns[:-1], turns[-1]["content"], tokenizer)) for turns in conversations)
