"""The chat page itself, and the chats in its list.

GET /chat, /chat/{id}  ->  one page that holds what its scripts need: chats, messages, models, words
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, StringConstraints
from starlette.responses import Response

from tutelage.data.privacy import redact
from tutelage.server.chat.answers import Text
from tutelage.server.chat.conversations import forget, listed, own, shown
from tutelage.server.chat.strings import reasons, strings
from tutelage.store import consent
from tutelage.store.database import Database
from tutelage.web.auth import Page, Store
from tutelage.web.errors import JSON
from tutelage.web.pages import language, markdown
from tutelage.web.people import writing
from tutelage.web.translations import translations

router = APIRouter(include_in_schema=False)
DEFAULTS = {"temperature": 0.8, "top_p": 0.95}


class Name(BaseModel):
    """A chat's new title."""

    title: Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]


class Written(BaseModel):
    """Text to be formatted."""

    text: Text


@router.get("/chat")
def new_chat(request: Request, caller: Page, database: Store) -> Response:
    """The page without a chat in it yet."""
    return page(request, caller.user_id, database)


@router.get("/chat/{conversation_id}")
def kept_chat(request: Request, conversation_id: str, caller: Page, database: Store) -> Response:
    """The page with a chat that was kept."""
    return page(request, caller.user_id, database, conversation_id)


def page(request: Request, user_id: str, database: Database, conversation_id: str | None = None) -> Response:
    """Everything the scripts need stands in the page: they ask for nothing to begin."""
    say: Callable[[str], str] = translations(language(request)).gettext
    with database.read() as session:
        chat = own(session, user_id, conversation_id) if conversation_id else None
        data: dict[str, Any] = {
            "conversation": chat and {
                "id": chat.id, "title": chat.title, "system": chat.system, "settings": chat.settings,
                "model": chat.model_id,
            },
            "messages": shown(session, user_id, chat) if chat else [],
            "conversations": listed(session, user_id),
            "recording": asdict(consent.recording_of(session, user_id)), "person": user_id,
        }  # fmt: skip
    data |= {"models": models_of(request), "defaults": DEFAULTS}
    return request.app.state.pages.render(request, "chat.html", page=data, strings=strings(say), reasons=reasons(say))


def models_of(request: Request) -> list[dict[str, Any]]:
    """What can be chatted with, and how much of a conversation it sees."""
    served = [request.app.state.registry.get(name) for name in request.app.state.registry.names()]
    return [{"id": model.name, "context": model.context} for model in served if model.kind == "policy"]


@router.post("/chat/markdown")
def formatted(written: Written, caller: Page) -> JSON:
    """An answer that was stopped, as HTML that can neither run nor load anything."""
    return JSON({"html": str(markdown(written.text))})


@router.patch("/chat/conversations/{conversation_id}")
def rename(conversation_id: str, name: Name, caller: Page, database: Store) -> Response:
    title, _ = redact(name.title)
    with writing(database, caller.user_id) as session:
        own(session, caller.user_id, conversation_id).title = title
    return Response(status_code=204)


@router.delete("/chat/conversations/{conversation_id}")
def remove(conversation_id: str, caller: Page, database: Store) -> Response:
    with writing(database, caller.user_id) as session:
        forget(session, own(session, caller.user_id, conversation_id))
    return Response(status_code=204)


@router.delete("/chat/conversations")
def remove_all(caller: Page, database: Store) -> Response:
    with writing(database, caller.user_id) as session:
        consent.forget_all(session, caller.user_id)
    return Response(status_code=204)
