"""/v1/models: list, load and unload models. Loading and unloading need a key with the scope `admin`."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.errors import InputError
from tutelage.server.api.schemas import DOCUMENTED, LoadRequest
from tutelage.server.registry import Served, no_such_model
from tutelage.web.auth import Inference, Owner
from tutelage.web.errors import JSON, ApiError

router = APIRouter(responses=DOCUMENTED, tags=["models"])


@router.get("/v1/models")
async def list_models(request: Request, caller: Inference) -> Response:
    registry = request.app.state.registry
    return JSON({"object": "list", "data": [as_model(registry.get(name)) for name in registry.names()]})


@router.get("/v1/models/{model:path}")
async def read_model(request: Request, caller: Inference, model: str) -> Response:
    return JSON(as_model(find(request, model)))


@router.post("/v1/models")
async def load_model(request: Request, caller: Owner, body: LoadRequest) -> Response:
    """Load one more run. Responds when the model is ready."""
    try:
        served = await run_in_threadpool(request.app.state.registry.load, body.run)
    except InputError as error:
        raise ApiError(400, str(error), param="run", code="invalid_value") from None
    return JSON(as_model(served))


@router.delete("/v1/models/{model:path}")
async def unload_model(request: Request, caller: Owner, model: str) -> Response:
    """Stop serving a model and free its memory. The run on the disk is not touched."""
    try:
        await run_in_threadpool(request.app.state.registry.unload, model)
    except KeyError:
        raise no_such_model(model) from None
    return JSON({"id": model, "object": "model", "deleted": True})


def find(request: Request, model: str) -> Served:
    try:
        return request.app.state.registry.get(model)
    except KeyError:
        raise no_such_model(model) from None


def as_model(served: Served) -> dict[str, Any]:
    """OpenAI's model object. The fields `kind` and `context` are our additions."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "tutelage",
        "kind": served.kind,
        "context": served.context,
    }
