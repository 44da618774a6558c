"""Chat completions that were kept (`store: true`): list, read, annotate, delete. Each person sees their own keys'.

Text that was kept carries where it came from; whether it may train a model is decided where a dataset is made.
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
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
After = Annotated[str | None, Query(pattern=r"^chatcmpl-[0-9A-Za-z]{24}$")]


def keep(database: Database, key_id: str, asked: dict[str, Any], completion: dict[str, Any]) -> None:
    """Write one; it is on the disk when this returns."""
    with database.write() as session:
        session.add(
            StoredCompletion(
                id=completion["id"], api_key_id=key_id, source_id=source(session, "api", "chat completions").id,
                model=completion["model"], request=asked, response=completion, meta=asked.get("metadata") or {},
            )
        )  # fmt: skip


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
    """The newest last; `metadata[key]=value` keeps those that were marked so."""
    query = own(caller.user_id)
    for name, value in request.query_params.items():
        if name.startswith("metadata[") and name.endswith("]"):
            query = query.where(marked(database, name[9:-1], value))
    if model:
        query = query.where(StoredCompletion.model == model)
    by_age = StoredCompletion.id.asc() if order == "asc" else StoredCompletion.id.desc()
    if after:
        query = query.where(StoredCompletion.id > after if order == "asc" else StoredCompletion.id < after)
    with database.read() as session:
        rows = list(session.scalars(query.order_by(by_age).limit(limit + 1)))
    return JSON(page_of([as_completion(row) for row in rows[:limit]], more=len(rows) > limit))


def marked(database: Database, name: str, value: str) -> ColumnElement[bool]:
    """Whether a completion's metadata say so. SQLite's paths have no way to write a quotation mark or a NUL."""
    if database.is_sqlite:
        entry = func.json_each(StoredCompletion.meta).table_valued("key", "value")
        return exists().select_from(entry).where(entry.c.key == name, entry.c.value == value)
    return StoredCompletion.meta[name].as_string() == value


def page_of(items: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """OpenAI's shape of a list in pages."""
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
    """The conversation that was answered."""
    with database.read() as session:
        row = find(session, caller.user_id, completion_id)
    turns = [
        {"id": f"{completion_id}-{i}", "role": turn["role"], "content": turn.get("content"), "content_parts": None,
         "name": None, "refusal": None, "annotations": []}
        for i, turn in enumerate(row.request["messages"])
    ]  # fmt: skip
    turns = turns if order == "asc" else turns[::-1]
    names = [turn["id"] for turn in turns]
    if after is not None and after not in names:
        raise ApiError(400, f"There is no message '{after}'.", param="after", code="invalid_value")
    start = names.index(after) + 1 if after is not None else 0
    return JSON(page_of(turns[start : start + limit], more=len(turns) > start + limit))


def own(user_id: str) -> Any:
    return (
        select(StoredCompletion).join(ApiKey, ApiKey.id == StoredCompletion.api_key_id).where(ApiKey.user_id == user_id)
    )


def find(session: Session, user_id: str, completion_id: str, *, to_change: bool = False) -> StoredCompletion:
    query = own(user_id).where(StoredCompletion.id == completion_id)
    row = session.scalar(query.with_for_update(of=StoredCompletion) if to_change else query)
    if row is None:
        raise ApiError(
            404, f"There is no stored completion '{completion_id}'.", param="completion_id", code="not_found"
        )
    return row


def as_completion(row: StoredCompletion) -> dict[str, Any]:
    """The completion as it was answered, with how it was asked for."""
    asked = {name: row.request.get(name) for name in ("temperature", "top_p", "seed", "presence_penalty")}
    return row.response | asked | {"metadata": row.meta, "request_id": row.id}
