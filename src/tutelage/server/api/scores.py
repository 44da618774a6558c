"""POST /v1/scores: a reward model's scores of conversations, in the shape that RL runs expect of HTTP scorers.

{"model", "input": [messages, ...]}  ->  {"object": "list", "model", "data": [{"index", "score"}, ...]}
"""

from collections.abc import Sequence

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from tutelage.data.messages import Messages
from tutelage.errors import InputError
from tutelage.server.api.chat_schemas import ScoreRequest
from tutelage.server.api.schemas import DOCUMENTED
from tutelage.server.encoder import size_of
from tutelage.server.registry import Served, find_model, no_such_model
from tutelage.server.sse import respond_until_disconnect
from tutelage.web.auth import Caller, Inference
from tutelage.web.errors import JSON, ApiError

SCORED_AT_ONCE = 16  # conversations; a caller who has left is noticed between two of these

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
    """Score within the key's limits. Calls take turns, and waiting ones occupy no thread."""
    assert caller.key
    state = request.app.state
    try:
        with state.limits.attempt(caller.key, sum(map(size_of, conversations))):
            texts = await encode(state.registry.get(model), conversations, caller.queue)
        tokens = sum(map(len, texts))
        with state.limits.generation(caller.key, tokens) as spent:
            spent.tokens = tokens
            results: list[float] = []
            for first in range(0, len(texts), SCORED_AT_ONCE):
                some = texts[first : first + SCORED_AT_ONCE]
                results += await to_thread.run_sync(
                    state.registry.score, model, some, limiter=state.scoring, abandon_on_cancel=True
                )
    except InputError as error:
        raise ApiError(400, str(error), param="input", code="invalid_value") from None
    except KeyError:
        raise no_such_model(model) from None
    data = [{"index": index, "score": result} for index, result in enumerate(results)]
    return JSON({"object": "list", "model": model, "data": data})


async def encode(served: Served, conversations: list[Messages], owner: str) -> list[Sequence[int]]:
    """The ids of conversations up to the token at which the score is read. Raises ApiError for one that is too long."""
    whole = served.reward is not None and served.reward.model.last_token is not None
    found = await served.encoder.answers(owner, conversations, served.context, whole)
    texts: list[Sequence[int]] = []
    for encoded in found:
        if encoded.ids is None:
            about = "" if encoded.exact else "at least "
            message = (
                f"A conversation has {about}{encoded.count} tokens, and this model's context length is "
                f"{served.context}. Shorten it."
            )
            raise ApiError(400, message, param="input", code="context_length_exceeded")
        texts.append(served.reward.without_padding(list(encoded.ids)) if served.reward and whole else encoded.ids)
    return texts
