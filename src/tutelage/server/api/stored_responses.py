"""Stored responses (`store: true`): read and delete them, and go on from one with `previous_response_id`.

A response is stored as it was, with its request, until the caller deletes it. A response that continues another refers
to it, so a conversation whose earlier response was deleted cannot be continued.
"""

from typing import Any

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from tutelage.server.api.response_input import InputItem
from tutelage.server.api.schemas import DOCUMENTED, MAX_MESSAGES
from tutelage.store.database import Database
from tutelage.store.sources import source
from tutelage.store.tables import ApiKey, StoredResponse
from tutelage.web.auth import Inference, Store
from tutelage.web.errors import JSON, ApiError

router = APIRouter(responses=DOCUMENTED, tags=["responses"])
MOST_CHARACTERS = 4_000_000  # of a conversation and what was sent with it
PATH = "/v1/responses/{response_id}"


def store_response(database: Database, key_id: str, request: dict[str, Any], response: dict[str, Any]) -> None:
    """Store a response with its request. It is on the disk when this returns."""
    with database.write() as session:
        row = StoredResponse(
            id=response["id"],
            api_key_id=key_id,
            source_id=source(session, "api", "responses").id,
            previous_id=response["previous_response_id"],
            model=response["model"],
            request=request,
            response=response,
        )
        session.add(row)


def items_before(database: Database, user_id: str, response_id: str | None) -> list[InputItem]:
    """The items of the conversation up to and including a stored response.

    Raises ApiError if one of its responses is not stored, or if the conversation is too long.
    """
    turns: list[list[Any]] = []
    size = 0
    with database.read() as session:
        while response_id is not None:
            row = find(session, user_id, response_id)
            if row is None:
                message = f"The previous response '{response_id}' is not stored. Send the whole conversation as input."
                raise ApiError(400, message, param="previous_response_id", code="previous_response_not_found")
            turns.append([*row.request["input"], *row.response["output"]])
            size += len(str(turns[-1]))
            if sum(map(len, turns)) > MAX_MESSAGES or size > MOST_CHARACTERS:
                most = f"{MAX_MESSAGES} items or {MOST_CHARACTERS} characters"
                message = f"The conversation has more than {most}. Begin a new one."
                raise ApiError(400, message, param="previous_response_id", code="invalid_value")
            response_id = row.previous_id
    return [InputItem.model_validate(item) for items in reversed(turns) for item in items]


def find(session: Session, user_id: str, response_id: str, *, to_change: bool = False) -> StoredResponse | None:
    """A person's stored response; None if there is none. `to_change` locks the row."""
    query = select(StoredResponse).join(ApiKey, ApiKey.id == StoredResponse.api_key_id)
    query = query.where(ApiKey.user_id == user_id, StoredResponse.id == response_id)
    return session.scalar(query.with_for_update(of=StoredResponse) if to_change else query)


def found(session: Session, user_id: str, response_id: str, *, to_change: bool = False) -> StoredResponse:
    """A person's stored response. Raises ApiError if there is none."""
    row = find(session, user_id, response_id, to_change=to_change)
    if row is None:
        message = f"There is no stored response '{response_id}'."
        raise ApiError(404, message, param="response_id", code="not_found")
    return row


@router.get(PATH)
def read_response(caller: Inference, database: Store, response_id: str, stream: bool = False) -> Response:
    """Read a stored response."""
    if stream:
        message = "A stored response cannot be streamed by this server; read it whole."
        raise ApiError(400, message, param="stream", code="unsupported_value")
    with database.read() as session:
        return JSON(found(session, caller.user_id, response_id).response)


@router.delete(PATH)
def delete_response(caller: Inference, database: Store, response_id: str) -> Response:
    """Delete a stored response."""
    with database.write() as session:
        session.delete(found(session, caller.user_id, response_id, to_change=True))
    return JSON({"id": response_id, "object": "response", "deleted": True})


@router.get(PATH + "/input_items")
def list_input_items(caller: Inference, database: Store, response_id: str) -> Response:
    """The input items of a stored response, without those of earlier responses."""
    with database.read() as session:
        row = found(session, caller.user_id, response_id)
    items = [listed(item, f"{response_id}-{i}") for i, item in enumerate(row.request["input"])]
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
    return JSON({"object": "list", "data": items, **ends, "has_more": False})


def listed(item: dict[str, Any], item_id: str) -> dict[str, Any]:
    """An input item as OpenAI lists it: with an id and a status, and its text as parts."""
    item = {"id": item_id, "type": "message", "status": "completed"} | item
    if item["type"] == "message" and isinstance(item["content"], str):
        written = item["role"] == "assistant"
        part: dict[str, Any] = {"type": "output_text", "annotations": []} if written else {"type": "input_text"}
        item["content"] = [part | {"text": item["content"]}]
    return item
