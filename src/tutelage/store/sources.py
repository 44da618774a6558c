"""Provenance: one row per source of text. Every stored text refers to its source."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from tutelage.store.database import find_or_add
from tutelage.store.ids import new_id
from tutelage.store.tables import Source


def source(session: Session, kind: str, name: str) -> Source:
    """The row of this source, added if it does not exist yet."""
    query = select(Source).where(Source.kind == kind, Source.name == name)
    return find_or_add(session, query, Source(id=new_id("src_"), kind=kind, name=name))
