"""The chat page's two switches: an admin allows chats to be recorded, and each person consents or refuses.

`record` keeps a person's chats so that they find them again. `train` lets those chats and the feedback on them train
models. Taking back `record` deletes every recorded chat. The rules themselves are in `store/consent.py`.
"""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from tutelage.store.consent import allow, forget_all, recording_of
from tutelage.store.database import Database
from tutelage.store.ids import new_id
from tutelage.store.tables import Consent
from tutelage.web.auth import Admin, Page, Store
from tutelage.web.errors import JSON, ApiError
from tutelage.web.people import writing

router = APIRouter(include_in_schema=False)
TEXT_VERSION = "2026-11-22"  # of the sentences beside the two boxes; a new wording is a new version


class Policy(BaseModel):
    """What an admin decides."""

    allowed: bool


class Wish(BaseModel):
    """What a person decides."""

    record: bool
    train: bool


def must_keep(session: Session, user_id: str) -> None:
    """Raises ApiError unless policy and person let what is said now be kept."""
    if not recording_of(session, user_id).on:
        raise ApiError(403, "Chats are no longer kept here. Begin a new one to go on.", code="recording_off")


@router.put("/chat/policy")
async def set_policy(wish: Policy, caller: Admin, database: Store) -> JSON:
    """Allow people to have their chats kept, or no longer."""

    def change() -> dict[str, Any]:
        with database.write() as session:
            allow(session, wish.allowed)
            return asdict(recording_of(session, caller.user_id))

    return JSON(await run_in_threadpool(change))


@router.put("/chat/consent")
async def set_consent(wish: Wish, caller: Page, database: Store) -> JSON:
    """Say yes or no; no to recording_of also deletes what was kept."""
    if wish.train and not wish.record:
        raise ApiError(400, "What is not kept cannot train a model.", param="train", code="invalid_value")
    return JSON(await run_in_threadpool(decide, database, caller.user_id, wish))


def decide(database: Database, user_id: str, wish: Wish) -> dict[str, Any]:
    """Write down what a person decided. Raises ApiError where the policy keeps nothing."""
    with writing(database, user_id) as session:
        before = recording_of(session, user_id)
        if wish.record and not before.allowed:
            raise ApiError(403, "This server keeps no chats.", code="recording_off")
        for kind, granted in (("record", wish.record), ("train", wish.train)):
            session.add(
                Consent(id=new_id("cns_"), user_id=user_id, kind=kind, granted=granted, text_version=TEXT_VERSION)
            )
        if not wish.record:
            forget_all(session, user_id)
        session.flush()
        return asdict(recording_of(session, user_id))
