"""Whether a person's chats are kept: only if the server's policy allows it and the person has said yes.

    policy (settings, set by an admin; off at first)  and  consents (the latest row of a kind counts)  ->  Keeping

`record` keeps chats so that their person finds them again; `train` lets them and what is said of answers train models.
Taking back `record` deletes every kept chat. Whatever is kept names its source and the consent it rests on.
"""

from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from tutelage.store.database import Database, find_or_add
from tutelage.store.ids import new_id
from tutelage.store.sources import source
from tutelage.store.tables import Consent, Conversation, ModerationFlag, Setting
from tutelage.web.auth import Admin, Page, Store
from tutelage.web.errors import JSON, ApiError
from tutelage.web.people import writing

router = APIRouter(include_in_schema=False)
POLICY = "recording"
TEXT_VERSION = "2026-11-22"  # of the sentences beside the two boxes; a new wording is a new version


@dataclass(frozen=True)
class Keeping:
    """What may be done with a person's chats."""

    allowed: bool  # by the server's policy
    record: bool
    train: bool
    decided: bool  # the person has been asked, whatever they said

    @property
    def on(self) -> bool:
        return self.allowed and self.record


class Policy(BaseModel):
    """What an admin decides."""

    allowed: bool


class Wish(BaseModel):
    """What a person decides."""

    record: bool
    train: bool


def keeping(session: Session, user_id: str) -> Keeping:
    """What counts for this person now."""
    policy = session.get(Setting, POLICY)
    record, train = latest(session, user_id, "record"), latest(session, user_id, "train")
    return Keeping(
        allowed=bool(policy and policy.value.get("allowed")),
        record=bool(record and record.granted),
        train=bool(record and record.granted and train and train.granted),
        decided=record is not None,
    )


def must_keep(session: Session, user_id: str) -> None:
    """Raises ApiError unless policy and person let what is said now be kept."""
    if not keeping(session, user_id).on:
        raise ApiError(403, "Chats are no longer kept here. Begin a new one to go on.", code="recording_off")


def latest(session: Session, user_id: str, kind: str) -> Consent | None:
    """The consent of a kind that counts; ids sort by the time they were made."""
    query = select(Consent).where(Consent.user_id == user_id, Consent.kind == kind)
    return session.scalar(query.order_by(Consent.id.desc()).limit(1))


def consent_to(session: Session, user_id: str, kind: str) -> str | None:
    """The id of the consent that stands, if one does."""
    found = latest(session, user_id, kind)
    return found.id if found and found.granted else None


def chat_source(session: Session) -> str:
    """Provenance of what is written on the chat page."""
    return source(session, "chat", "chat page").id


def forget_all(session: Session, user_id: str) -> None:
    """Delete a person's chats, and with them every word, judgement and flag on them."""
    session.execute(delete(ModerationFlag).where(ModerationFlag.user_id == user_id))
    session.execute(delete(Conversation).where(Conversation.user_id == user_id))


def allow(session: Session, allowed: bool) -> None:
    """Set the policy."""
    policy = select(Setting).where(Setting.key == POLICY).with_for_update()
    find_or_add(session, policy, Setting(key=POLICY, value={})).value = {"allowed": allowed}
    session.flush()


@router.put("/chat/policy")
async def set_policy(wish: Policy, caller: Admin, database: Store) -> JSON:
    """Allow people to have their chats kept, or no longer."""

    def change() -> dict[str, Any]:
        with database.write() as session:
            allow(session, wish.allowed)
            return asdict(keeping(session, caller.user_id))

    return JSON(await run_in_threadpool(change))


@router.put("/chat/consent")
async def set_consent(wish: Wish, caller: Page, database: Store) -> JSON:
    """Say yes or no; no to keeping also deletes what was kept."""
    if wish.train and not wish.record:
        raise ApiError(400, "What is not kept cannot train a model.", param="train", code="invalid_value")
    return JSON(await run_in_threadpool(decide, database, caller.user_id, wish))


def decide(database: Database, user_id: str, wish: Wish) -> dict[str, Any]:
    """Write down what a person decided. Raises ApiError where the policy keeps nothing."""
    with writing(database, user_id) as session:
        before = keeping(session, user_id)
        if wish.record and not before.allowed:
            raise ApiError(403, "This server keeps no chats.", code="recording_off")
        for kind, granted in (("record", wish.record), ("train", wish.train)):
            session.add(
                Consent(id=new_id("cns_"), user_id=user_id, kind=kind, granted=granted, text_version=TEXT_VERSION)
            )
        if not wish.record:
            forget_all(session, user_id)
        session.flush()
        return asdict(keeping(session, user_id))
