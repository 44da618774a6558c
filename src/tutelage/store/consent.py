"""Whether a person's chats may be recorded: the server's policy must allow it and the person must have consented.

    policy (table settings; an admin sets it; off at first)
    consents (one row per decision; the latest row of a kind is in force)  ->  Recording

Every recorded row names its source (`store/sources.py`) and the consent that permits it.
"""

from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tutelage.store.database import find_or_add
from tutelage.store.sources import source
from tutelage.store.tables import Consent, Conversation, ModerationFlag, Setting

POLICY = "recording"
TEXT_VERSION = "2026-11-30"  # version of the consent text beside the chat page's boxes; change it with the wording


@dataclass(frozen=True)
class Recording:
    """What may be done with a person's chats."""

    allowed: bool  # by the server's policy
    record: bool  # the person consents to recording
    train: bool  # the person consents to recording and to training on it
    decided: bool  # the person has made a choice on the present text, whichever it was

    @property
    def on(self) -> bool:
        """Whether new chats may be recorded."""
        return self.allowed and self.record


def recording_of(session: Session, user_id: str) -> Recording:
    """The policy and the person's consent, as they are now."""
    policy = session.get(Setting, POLICY)
    record, train = latest(session, user_id, "record"), latest(session, user_id, "train")
    return Recording(
        allowed=bool(policy and policy.value.get("allowed")),
        record=bool(record and record.granted),
        train=bool(record and record.granted and train and train.granted),
        decided=record is not None and record.text_version == TEXT_VERSION,
    )


def latest(session: Session, user_id: str, kind: str) -> Consent | None:
    """The person's latest consent of a kind. Ids sort by creation time."""
    query = select(Consent).where(Consent.user_id == user_id, Consent.kind == kind)
    return session.scalar(query.order_by(Consent.id.desc()).limit(1))


def consent_to(session: Session, user_id: str, kind: str) -> str | None:
    """The id of the consent in force; None if the person never consented or withdrew it."""
    consent = latest(session, user_id, kind)
    return consent.id if consent and consent.granted else None


def chat_source(session: Session) -> str:
    """The id of the source of everything written on the chat page."""
    return source(session, "chat", "chat page").id


def forget_all(session: Session, user_id: str) -> None:
    """Delete a person's chats, with all messages, feedback and flags."""
    session.execute(delete(ModerationFlag).where(ModerationFlag.user_id == user_id))
    session.execute(delete(Conversation).where(Conversation.user_id == user_id))


def allow(session: Session, allowed: bool) -> None:
    """Set the server's policy: whether people may have their chats recorded."""
    policy = select(Setting).where(Setting.key == POLICY).with_for_update()
    find_or_add(session, policy, Setting(key=POLICY, value={})).value = {"allowed": allowed}
    session.flush()
