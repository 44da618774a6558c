"""Routes for the recording policy, which an admin sets, and for each person's consent.

`record` keeps a person's chats, so that they can return to them. `train` allows training on those chats and their
feedback. Withdrawing `record` deletes all recorded chats of the person. The rules are in `store/consent.py`.
"""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from tutelage.store.consent import TEXT_VERSION, allow, forget_all, recording_of
from tutelage.store.database import Database
from tutelage.store.ids import new_id
from tutelage.store.tables import Consent
from tutelage.web.auth import Admin, Page, Store
from tutelage.web.errors import JSON, ApiError
from tutelage.web.people import writing

router = APIRouter(include_in_schema=False)


class PolicyChoice(BaseModel):
    """An admin's choice."""

    allowed: bool


class ConsentChoice(BaseModel):
    """A person's choice."""

    record: bool
    train: bool


def require_recording(session: Session, user_id: str) -> None:
    """Raise ApiError unless the policy and the person's consent allow recording."""
    if not recording_of(session, user_id).on:
        message = "Chats are no longer kept on this server. Start a new chat to continue."
        raise ApiError(403, message, code="recording_off")


@router.put("/chat/policy")
async def set_policy(choice: PolicyChoice, caller: Admin, database: Store) -> JSON:
    """Set whether people may have their chats recorded."""

    def change() -> dict[str, Any]:
        with database.write() as session:
            allow(session, choice.allowed)
            return asdict(recording_of(session, caller.user_id))

    return JSON(await run_in_threadpool(change))


@router.put("/chat/consent")
async def set_consent(choice: ConsentChoice, caller: Page, database: Store) -> JSON:
    """Consent or refuse. Without consent to recording, all recorded chats of the person are deleted."""
    if choice.train and not choice.record:
        message = "Chats that are not kept cannot train a model. Also choose to keep them."
        raise ApiError(400, message, param="train", code="invalid_value")
    return JSON(await run_in_threadpool(store_choice, database, caller.user_id, choice))


def store_choice(database: Database, user_id: str, choice: ConsentChoice) -> dict[str, Any]:
    """Store a person's choice and return the new state. Raises ApiError if the policy does not allow recording."""
    with writing(database, user_id) as session:
        before = recording_of(session, user_id)
        if choice.record and not before.allowed:
            raise ApiError(403, "This server does not keep chats.", code="recording_off")
        for kind, granted in (("record", choice.record), ("train", choice.train)):
            session.add(
                Consent(id=new_id("cns_"), user_id=user_id, kind=kind, granted=granted, text_version=TEXT_VERSION)
            )
        if not choice.record:
            forget_all(session, user_id)
        session.flush()
        return asdict(recording_of(session, user_id))
