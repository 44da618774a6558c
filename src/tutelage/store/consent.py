"""Whether a person's chats may be recorded: the server's policy allows it and the person has consented.

    policy (settings, set by an admin; off at first)  and  consents (the latest row of a kind counts)  ->  Recording

Everything that is recorded names its source (`store/sources.py`) and the consent it rests on.
"""

from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tutelage.store.database import find_or_add
from tutelage.store.sources import source
from tutelage.store.tables import Consent, Conversation, ModerationFlag, Setting

POLICY = "recording"


@dataclass(frozen=True)
class Recording:
    """What may be done with a person's chats."""

    allowed: bool  # by the server's policy
    record: bool
    train: bool
    decided: bool  # the person has been asked, whatever they said

    @property
    def on(self) -> bool:
        return self.allowed and self.record


def recording_of(session: Session, user_id: str) -> Recording:
    """What counts for this person now."""
    policy = session.get(Setting, POLICY)
    record, train = latest(session, user_id, "record"), latest(session, user_id, "train")
    return Recording(
        allowed=bool(policy and policy.value.get("allowed")),
        record=bool(record and record.granted),
        train=bool(record and record.granted and train and train.granted),
        decided=record is not None,
    )


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
