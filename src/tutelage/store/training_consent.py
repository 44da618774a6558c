"""Which rows may train a model: what each person consented to when a row was written, and what they consent to now.

Consents(session).objection(person, consent of the row)  ->  None, or why the row is left out
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage.store.consent import TEXT_VERSION
from tutelage.store.tables import Consent

NEVER = "written without consent to training"
WITHDRAWN = "consent withdrawn"
EARLIER_TEXT = "consent given to an earlier text"


class Consents:
    """Everybody's decisions, read once."""

    def __init__(self, session: Session):
        self._decisions: dict[tuple[str, str], list[Consent]] = {}  # by person and kind, in order of time
        for row in session.scalars(select(Consent).order_by(Consent.id)):
            self._decisions.setdefault((row.user_id, row.kind), []).append(row)

    def objection(self, user_id: str, consent_id: str | None) -> str | None:
        """Why a person's row must not train a model; None if it may.

        consent_id: the consent to training that was in force when the row was written.
        """
        given = [row for row in self._of(user_id, "train") if row.id == consent_id and row.granted]
        if not given:
            return NEVER
        now = [self._of(user_id, kind)[-1:] for kind in ("train", "record")]
        if not all(latest and latest[0].granted for latest in now):
            return WITHDRAWN
        return None if now[0][0].text_version == TEXT_VERSION else EARLIER_TEXT

    def at(self, user_id: str, ms: int) -> str | None:
        """The id of the consent to training that was in force at a time; None if there was none."""
        earlier = [row for row in self._of(user_id, "train") if row.created_ms <= ms]
        return earlier[-1].id if earlier and earlier[-1].granted else None

    def _of(self, user_id: str, kind: str) -> list[Consent]:
        return self._decisions.get((user_id, kind), [])
