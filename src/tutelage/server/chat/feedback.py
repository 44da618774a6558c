"""Feedback on answers in recorded chats: a thumb with reasons, a better answer, or a comparison of two answers.

Each row names its source, and the consent to training if there is one. A row without consent belongs to the person and
trains nothing. Reasons about harm, and thumbs up, also become flags for the moderation classifier.
"""

import secrets
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.data.privacy import redact
from tutelage.server.chat.consent import require_recording
from tutelage.server.chat.conversations import add, message_shown, own, own_message, select_one
from tutelage.store.consent import chat_source, consent_to
from tutelage.store.database import Database
from tutelage.store.ids import new_id, now_ms
from tutelage.store.tables import ChatMessage, Comparison, Feedback, ModerationFlag
from tutelage.web.auth import Page, Store
from tutelage.web.errors import JSON, ApiError
from tutelage.web.people import writing

router = APIRouter(include_in_schema=False)
Text = Annotated[str, StringConstraints(max_length=100_000, strip_whitespace=True)]
Comment = Annotated[str, StringConstraints(max_length=4_000)]
UP = ("helpful", "true", "well_said", "kind")
# Based on the metadata that InstructGPT's labelers collect (Ouyang et al. 2022, table 3). Labels: strings.py.
DOWN = (
    "instruction",
    "untrue",
    "unfit",
    "repetitive",
    "language",
    "harmful_advice",
    "sexual",
    "violent",
    "encourages_harm",
    "denigrates",
    "opinion",
)
FLAGS = {  # reasons -> categories of the moderation classifier
    "harmful_advice": "illicit",
    "sexual": "sexual",
    "violent": "violence",
    "encourages_harm": "illicit/violent",
    "denigrates": "hate",
}


class Thumb(BaseModel):
    """A thumb up (1) or down (-1), or its withdrawal (0)."""

    value: Literal[-1, 0, 1]
    reasons: list[Literal[UP + DOWN]] = Field(default=[], max_length=len(UP + DOWN))  # type: ignore[valid-type]
    comment: Comment = ""


class Better(BaseModel):
    """The answer that the model should have given."""

    text: Annotated[Text, StringConstraints(min_length=1)]


class Pair(BaseModel):
    """The ids of two answers to one question."""

    first: str
    second: str


class Decision(BaseModel):
    """Which answer of a pair is better, and why."""

    winner: Literal["a", "b", "tie", "both_bad"]
    reasons: list[Literal[UP]] = Field(default=[], max_length=len(UP))  # type: ignore[valid-type]


@router.put("/chat/messages/{message_id}/thumb")
def thumb(message_id: str, body: Thumb, caller: Page, database: Store) -> JSON:
    """Give an answer a thumb, replace it, or withdraw it."""
    if body.value != 0:
        database.check_room()
    comment, _ = redact(body.comment)
    with writing(database, caller.user_id) as session:
        answer = own_message(session, caller.user_id, message_id, "assistant")
        if body.value != 0:
            require_recording(session, caller.user_id)
        session.execute(delete(ModerationFlag).where(ModerationFlag.message_id == answer.id))
        row = feedback(session, caller.user_id, answer, "thumb")
        if body.value == 0:
            session.delete(row)
        else:
            row.value, row.reasons, row.text = body.value, list(body.reasons), comment or None
            flag(session, row, answer)
    return JSON({"value": body.value})


def feedback(session: Session, user_id: str, answer: ChatMessage, kind: str) -> Feedback:
    """The person's feedback row of this kind on this answer, added if needed. It gets the consent now in force."""
    query = select(Feedback).where(Feedback.user_id == user_id, Feedback.message_id == answer.id, Feedback.kind == kind)
    row = session.scalar(query)
    row = row or Feedback(id=new_id("fbk_"), user_id=user_id, message_id=answer.id, kind=kind, text="")
    row.source_id, row.consent_id = chat_source(session), consent_to(session, user_id, "train")
    session.add(row)
    session.flush()
    return row


def flag(session: Session, thumb: Feedback, answer: ChatMessage) -> None:
    """Add a moderation flag for a thumb whose reasons name harm (with categories) or a thumb up (harmless)."""
    categories = sorted({FLAGS[reason] for reason in thumb.reasons if reason in FLAGS})
    if categories or thumb.value == 1:
        row = ModerationFlag(id=new_id("flg_"), user_id=thumb.user_id, message_id=answer.id, text=answer.content)
        row.flagged, row.categories, row.consent_id = bool(categories), categories, thumb.consent_id
        session.add(row)


@router.post("/chat/messages/{message_id}/better")
async def better(request: Request, message_id: str, body: Better, caller: Page, database: Store) -> JSON:
    """Store the person's own answer as a demonstration. The chat continues from it."""
    database.check_room()
    work = request.app.state.text_work
    text, redacted = await work.redacted(caller.user_id, body.text)
    html = await work.formatted(caller.user_id, text)
    row = await run_in_threadpool(store_better, database, caller.user_id, message_id, text, redacted)
    return JSON(message_shown(row, html))


def store_better(database: Database, user_id: str, message_id: str, text: str, redacted: dict[str, int]) -> ChatMessage:
    """Store the redacted text in the place of an answer. Returns its message."""
    with writing(database, user_id) as session:
        require_recording(session, user_id)
        answer = own_message(session, user_id, message_id, "assistant")
        if earlier := answer.params.get("instead_of"):  # the person improves their own better answer
            answer = own_message(session, user_id, earlier, "assistant")
        feedback(session, user_id, answer, "demonstration").text = text
        chat = own(session, user_id, answer.conversation_id)
        siblings = session.scalars(select(ChatMessage).where(ChatMessage.parent_id == answer.parent_id))
        row = next((other for other in siblings if other.params.get("instead_of") == answer.id), None)
        if row is None:
            row = add(session, chat, answer.parent_id, "assistant", text, params={"instead_of": answer.id})
        row.content, row.redacted = text, redacted
        select_one(session, row)
        session.flush()
        return row


@router.post("/chat/messages/{message_id}/select")
def choose_branch(message_id: str, caller: Page, database: Store) -> Response:
    """Show this version of a message instead of the others."""
    with writing(database, caller.user_id) as session:
        select_one(session, own_message(session, caller.user_id, message_id))
    return Response(status_code=204)


@router.post("/chat/comparisons")
def pair(body: Pair, caller: Page, database: Store) -> JSON:
    """Start a comparison of two answers to one question, in random order."""
    database.check_room()
    with writing(database, caller.user_id) as session:
        require_recording(session, caller.user_id)
        first, second = (own_message(session, caller.user_id, m, "assistant") for m in (body.first, body.second))
        if first.parent_id != second.parent_id or first.id == second.id:
            raise ApiError(400, "Only two different answers to one question can be compared.", code="invalid_value")
        a, b = (first, second) if secrets.randbelow(2) else (second, first)
        row = Comparison(id=new_id("cmp_"), user_id=caller.user_id, a_message_id=a.id, b_message_id=b.id)
        row.conversation_id, row.source_id = first.conversation_id, chat_source(session)
        row.consent_id = consent_to(session, caller.user_id, "train")
        session.add(row)
    return JSON({"id": row.id, "a": a.id, "b": b.id})


@router.post("/chat/comparisons/{comparison_id}")
def decide(comparison_id: str, body: Decision, caller: Page, database: Store) -> Response:
    """Store which answer is better, once. The better one is shown from now on."""
    with writing(database, caller.user_id) as session:
        require_recording(session, caller.user_id)
        row = session.get(Comparison, comparison_id)
        if row is None or row.user_id != caller.user_id:
            raise ApiError(404, "There is no such comparison.", code="not_found")
        if row.winner is not None:
            raise ApiError(400, "This comparison has already been decided.", code="decided")
        row.winner, row.reasons, row.decided_ms = body.winner, list(body.reasons), now_ms()
        if body.winner in ("a", "b"):
            better_id = row.a_message_id if body.winner == "a" else row.b_message_id
            select_one(session, session.get_one(ChatMessage, better_id))
    return Response(status_code=204)
