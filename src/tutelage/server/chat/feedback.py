"""What a person says of an answer in a kept chat: a thumb with reasons, a better answer, which of two is better.

Each row names its source, and the consent to training if there is one: without it the row is the person's own and
trains nothing. Reasons that speak of harm, and thumbs up, are also flags for the moderation classifier.
"""

import secrets
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from tutelage.data.privacy import redact
from tutelage.server.chat.consent import must_keep
from tutelage.server.chat.conversations import add, message_shown, own, own_message, select_one
from tutelage.store.consent import chat_source, consent_to
from tutelage.store.ids import new_id, now_ms
from tutelage.store.tables import ChatMessage, Comparison, Feedback, ModerationFlag
from tutelage.web.auth import Page, Store
from tutelage.web.errors import JSON, ApiError
from tutelage.web.people import writing

router = APIRouter(include_in_schema=False)
Text = Annotated[str, StringConstraints(max_length=100_000, strip_whitespace=True)]
Comment = Annotated[str, StringConstraints(max_length=4_000)]
UP = ("helpful", "true", "well_said", "kind")
# After the flags of InstructGPT's labelers (Ouyang et al. 2022, table 3), in plain words on the page.
DOWN = (
    "instruction", "untrue", "unfit", "repetitive", "language", "harmful_advice", "sexual", "violent",
    "encourages_harm", "denigrates", "opinion",
)  # fmt: skip
FLAGS = {
    "harmful_advice": "illicit", "sexual": "sexual", "violent": "violence", "encourages_harm": "illicit/violent",
    "denigrates": "hate",
}  # fmt: skip


class Thumb(BaseModel):
    """Up, down, or taken back."""

    value: Literal[-1, 0, 1]
    reasons: list[Literal[UP + DOWN]] = Field(default=[], max_length=len(UP + DOWN))  # type: ignore[valid-type]
    comment: Comment = ""


class Better(BaseModel):
    """The answer that the model should have given."""

    text: Annotated[Text, StringConstraints(min_length=1)]


class Pair(BaseModel):
    """Two answers to one question: the one that was there, and the new one."""

    first: str
    second: str


class Verdict(BaseModel):
    """Which of a pair is better, and what decides it."""

    winner: Literal["a", "b", "tie", "both_bad"]
    reasons: list[Literal[UP]] = Field(default=[], max_length=len(UP))  # type: ignore[valid-type]


@router.put("/chat/messages/{message_id}/thumb")
def thumb(message_id: str, said: Thumb, caller: Page, database: Store) -> JSON:
    """A thumb for an answer; another one replaces it."""
    if said.value != 0:
        database.check_room()
    comment, _ = redact(said.comment)
    with writing(database, caller.user_id) as session:
        answer = own_message(session, caller.user_id, message_id, "assistant")
        if said.value != 0:
            must_keep(session, caller.user_id)
        session.execute(delete(ModerationFlag).where(ModerationFlag.message_id == answer.id))
        row = feedback(session, caller.user_id, answer, "thumb")
        if said.value == 0:
            session.delete(row)
        else:
            row.value, row.reasons, row.text = said.value, list(said.reasons), comment or None
            flag(session, row, answer)
    return JSON({"value": said.value})


def feedback(session: Session, user_id: str, answer: ChatMessage, kind: str) -> Feedback:
    """The row of this person, answer and kind, made if need be; its consent is the one that stands now."""
    query = select(Feedback).where(Feedback.user_id == user_id, Feedback.message_id == answer.id, Feedback.kind == kind)
    row = session.scalar(query) or Feedback(
        id=new_id("fbk_"), user_id=user_id, message_id=answer.id, kind=kind, text=""
    )
    row.source_id, row.consent_id = chat_source(session), consent_to(session, user_id, "train")
    session.add(row)
    session.flush()
    return row


def flag(session: Session, thumb: Feedback, answer: ChatMessage) -> None:
    """What a thumb says about harm: the categories its reasons stand for, or none for an answer that was liked."""
    categories = sorted({FLAGS[reason] for reason in thumb.reasons if reason in FLAGS})
    if categories or thumb.value == 1:
        row = ModerationFlag(
            id=new_id("flg_"), user_id=thumb.user_id, message_id=answer.id, consent_id=thumb.consent_id,
            text=answer.content, flagged=bool(categories), categories=categories,
        )  # fmt: skip
        session.add(row)


@router.post("/chat/messages/{message_id}/better")
def better(message_id: str, said: Better, caller: Page, database: Store) -> JSON:
    """A person's own answer: a demonstration, and from now on the one that the chat goes on from."""
    database.check_room()
    text, redacted = redact(said.text)
    with writing(database, caller.user_id) as session:
        must_keep(session, caller.user_id)
        answer = own_message(session, caller.user_id, message_id, "assistant")
        if earlier := answer.params.get("instead_of"):  # a better version of one's own better answer
            answer = own_message(session, caller.user_id, earlier, "assistant")
        feedback(session, caller.user_id, answer, "demonstration").text = text
        chat = own(session, caller.user_id, answer.conversation_id)
        siblings = session.scalars(select(ChatMessage).where(ChatMessage.parent_id == answer.parent_id))
        row = next((other for other in siblings if other.params.get("instead_of") == answer.id), None)
        if row is None:
            row = add(session, chat, answer.parent_id, "assistant", text, params={"instead_of": answer.id})
        row.content, row.redacted = text, dict(redacted)
        select_one(session, row)
        session.flush()
        return JSON(message_shown(row))


@router.post("/chat/messages/{message_id}/select")
def choose_branch(message_id: str, caller: Page, database: Store) -> Response:
    """Show this version of a message instead of the others."""
    with writing(database, caller.user_id) as session:
        select_one(session, own_message(session, caller.user_id, message_id))
    return Response(status_code=204)


@router.post("/chat/comparisons")
def pair(given: Pair, caller: Page, database: Store) -> JSON:
    """Put two answers to one question side by side, in an order nobody chose."""
    database.check_room()
    with writing(database, caller.user_id) as session:
        must_keep(session, caller.user_id)
        first, second = (own_message(session, caller.user_id, m, "assistant") for m in (given.first, given.second))
        if first.parent_id != second.parent_id or first.id == second.id:
            raise ApiError(400, "Two different answers to the same question are compared.", code="invalid_value")
        a, b = (first, second) if secrets.randbelow(2) else (second, first)
        row = Comparison(
            id=new_id("cmp_"), user_id=caller.user_id, conversation_id=first.conversation_id, a_message_id=a.id,
            b_message_id=b.id, source_id=chat_source(session), consent_id=consent_to(session, caller.user_id, "train"),
        )  # fmt: skip
        session.add(row)
    return JSON({"id": row.id, "a": a.id, "b": b.id})


@router.post("/chat/comparisons/{comparison_id}")
def decide(comparison_id: str, said: Verdict, caller: Page, database: Store) -> Response:
    """Which is better; it is shown from now on. Can be said once."""
    with writing(database, caller.user_id) as session:
        must_keep(session, caller.user_id)
        row = session.get(Comparison, comparison_id)
        if row is None or row.user_id != caller.user_id:
            raise ApiError(404, "There is no such comparison.", code="not_found")
        if row.winner is not None:
            raise ApiError(400, "This comparison is decided already.", code="decided")
        row.winner, row.reasons, row.decided_ms = said.winner, list(said.reasons), now_ms()
        if said.winner in ("a", "b"):
            chosen = row.a_message_id if said.winner == "a" else row.b_message_id
            select_one(session, session.get_one(ChatMessage, chosen))
    return Response(status_code=204)
