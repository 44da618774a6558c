"""Stored chat completions (`store: true`): list, read, annotate, delete. People see only those of their own keys.

The request and the completion are stored as they were, without redaction, until the caller deletes them. Whoever runs
the server can read them. They are not exported as training data (`store/training_data.py`).
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from tutelage.server.api.schemas import DOCUMENTED, MetadataUpdate
from tutelage.store.database import Database
from tutelage.store.sources import source
from tutelage.store.tables import ApiKey, StoredCompletion
from tutelage.web.auth import Inference, Store
from tutelage.web.errors import JSON, ApiError

router = APIRouter(responses=DOCUMENTED, tags=["stored completions"])
PATH = "/v1/chat/completions"
# Fields of the request that a stored completion repeats.
REPEATED = "temperature top_p seed presence_penalty frequency_penalty tools tool_choice response_format".split()
OPTIONAL = ("tool_calls", "tool_call_id", "reasoning_content")  # fields of a stored message, if it was sent with them
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
After = Annotated[str | None, Query(pattern=r"^chatcmpl-[0-9A-Za-z]{24}$")]


def store_completion(database: Database, key_id: str, request: dict[str, Any], completion: dict[str, Any]) -> None:
    """Store a completion with its request. It is on the disk when this returns."""
    with database.write() as session:
        row = StoredCompletion(
            id=completion["id"],
            api_key_id=key_id,
            source_id=source(session, "api", "chat completions").id,
            model=completion["model"],
            request=request,
            response=completion,
            meta=request.get("metadata") or {},
        )
        session.add(row)


@router.get(PATH)
def list_stored(
    request: Request,
    caller: Inference,
    database: Store,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
    model: str | None = None,
) -> Response:
    """List stored completions, by default the newest last. `metadata[key]=value` filters by metadata."""
    query = own(caller.user_id)
    for name, value in request.query_params.items():
        if name.startswith("metadata[") and name.endswith("]"):
            query = query.where(has_metadata(database, name[9:-1], value))
    if model:
        query = query.where(StoredCompletion.model == model)
    by_age = StoredCompletion.id.asc() if order == "asc" else StoredCompletion.id.desc()
    if after:
        query = query.where(StoredCompletion.id > after if order == "asc" else StoredCompletion.id < after)
    with database.read() as session:
        rows = list(session.scalars(query.order_by(by_age).limit(limit + 1)))
    return JSON(page_of([as_completion(row) for row in rows[:limit]], more=len(rows) > limit))


def has_metadata(database: Database, name: str, value: str) -> ColumnElement[bool]:
    """An SQL condition: the completion's metadata has this value under this name."""
    if database.is_sqlite:  # its JSON paths cannot express a name with a quotation mark or a NUL, so compare entries
        entry = func.json_each(StoredCompletion.meta).table_valued("key", "value")
        return exists().select_from(entry).where(entry.c.key == name, entry.c.value == value)
    return StoredCompletion.meta[name].as_string() == value


def page_of(items: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """One page of a list, in OpenAI's shape."""
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {"first_id": None, "last_id": None}
    return {"object": "list", "data": items, **ends, "has_more": more}


@router.get(PATH + "/{completion_id}")
def read_stored(caller: Inference, database: Store, completion_id: str) -> Response:
    with database.read() as session:
        return JSON(as_completion(find(session, caller.user_id, completion_id)))


@router.post(PATH + "/{completion_id}")
def annotate_stored(caller: Inference, database: Store, completion_id: str, body: MetadataUpdate) -> Response:
    with database.write() as session:
        row = find(session, caller.user_id, completion_id, to_change=True)
        row.meta = dict(body.metadata or {})
    return JSON(as_completion(row))


@router.delete(PATH + "/{completion_id}")
def delete_stored(caller: Inference, database: Store, completion_id: str) -> Response:
    with database.write() as session:
        session.delete(find(session, caller.user_id, completion_id, to_change=True))
    return JSON({"object": "chat.completion.deleted", "id": completion_id, "deleted": True})


@router.get(PATH + "/{completion_id}/messages")
def stored_messages(
    caller: Inference,
    database: Store,
    completion_id: str,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Response:
    """The messages of the request."""
    with database.read() as session:
        row = find(session, caller.user_id, completion_id)
    turns = [as_message(f"{completion_id}-{i}", turn) for i, turn in enumerate(row.request["messages"])]
    turns = turns if order == "asc" else turns[::-1]
    ids = [turn["id"] for turn in turns]
    if after is not None and after not in ids:
        raise ApiError(400, f"There is no message '{after}'.", param="after", code="invalid_value")
    start = ids.index(after) + 1 if after is not None else 0
    return JSON(page_of(turns[start : start + limit], more=len(turns) > start + limit))


def as_message(message_id: str, turn: dict[str, Any]) -> dict[str, Any]:
    """A message of a stored request as OpenAI's object."""
    message = {"id": message_id, "role": turn["role"], "content": turn.get("content"), "name": turn.get("name")}
    more = {name: turn[name] for name in OPTIONAL if name in turn}
    return message | {"content_parts": None, "refusal": None, "annotations": []} | more


def own(user_id: str) -> Any:
    """A query for the completions of a person's keys."""
    query = select(StoredCompletion).join(ApiKey, ApiKey.id == StoredCompletion.api_key_id)
    return query.where(ApiKey.user_id == user_id)


def find(session: Session, user_id: str, completion_id: str, *, to_change: bool = False) -> StoredCompletion:
    """A person's stored completion. Raises ApiError if there is none. `to_change` locks the row."""
    query = own(user_id).where(StoredCompletion.id == completion_id)
    row = session.scalar(query.with_for_update(of=StoredCompletion) if to_change else query)
    if row is None:
        message = f"There is no stored completion '{completion_id}'."
        raise ApiError(404, message, param="completion_id", code="not_found")
    return row


def as_completion(row: StoredCompletion) -> dict[str, Any]:
    """The stored completion as OpenAI's object, which includes some fields of its request."""
    request = {name: row.request.get(name) for name in REPEATED}
    return row.response | request | {"metadata": row.meta, "request_id": row.id}
