"""The chat page, and the routes to rename and delete chats.

GET /chat, /chat/{id}  ->  one page with everything its scripts need: chats, messages, models, translated strings
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, StringConstraints
from starlette.responses import Response

from tutelage.data.privacy import redact
from tutelage.server.chat.answers import Settings, Text
from tutelage.server.chat.conversations import forget, listed, own, shown
from tutelage.server.chat.strings import general_suggestions, reasons, strings
from tutelage.server.suggestions import for_page
from tutelage.store import consent
from tutelage.store.database import Database
from tutelage.store.tables import Conversation
from tutelage.web.auth import Page, Store
from tutelage.web.errors import JSON
from tutelage.web.pages import language
from tutelage.web.people import writing
from tutelage.web.translations import translations

router = APIRouter(include_in_schema=False)
# The sampling settings that the page starts with. It sends them with every question; the API's defaults are OpenAI's.
DEFAULTS = Settings().model_dump(exclude_none=True)


class Name(BaseModel):
    """A chat's new title."""

    title: Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]


class Markdown(BaseModel):
    """Text to be rendered."""

    text: Text


@router.get("/chat")
def new_chat(request: Request, caller: Page, database: Store) -> Response:
    """The page with a new chat."""
    return page(request, caller.user_id, database)


@router.get("/chat/{conversation_id}")
def recorded_chat(request: Request, conversation_id: str, caller: Page, database: Store) -> Response:
    """The page with a recorded chat."""
    return page(request, caller.user_id, database, conversation_id)


def page(request: Request, user_id: str, database: Database, conversation_id: str | None = None) -> Response:
    """Render the page. It contains all data for its scripts, so that they need no request to start."""
    translate: Callable[[str], str] = translations(language(request)).gettext
    formatted = partial(request.app.state.text_work.formatted_all, user_id)
    with database.read() as session:
        chat = own(session, user_id, conversation_id) if conversation_id else None
        data: dict[str, Any] = {
            "conversation": chat and conversation_of(chat),
            "messages": shown(session, user_id, chat, formatted) if chat else [],
            "conversations": listed(session, user_id),
            "recording": asdict(consent.recording_of(session, user_id)),
            "person": user_id,
        }
    data |= {"models": models_of(request), "defaults": DEFAULTS}
    suggestions = suggestions_of(request, general_suggestions(translate))
    words = {"strings": strings(translate), "reasons": reasons(translate)}
    return request.app.state.pages.render(request, "chat.html", page=data, suggestions=suggestions, **words)


def conversation_of(chat: Conversation) -> dict[str, Any]:
    """A recorded chat for the page, without its messages."""
    return {
        "id": chat.id,
        "title": chat.title,
        "system": chat.system,
        "settings": chat.settings,
        "model": chat.model_id,
    }


def policies(request: Request) -> list[Any]:
    """The policies that are served."""
    served = [request.app.state.registry.get(name) for name in request.app.state.registry.names()]
    return [model for model in served if model.kind == "policy"]


def models_of(request: Request) -> list[dict[str, Any]]:
    """The policies that are served, with the size of their context in tokens."""
    return [{"id": model.name, "context": model.context} for model in policies(request)]


def suggestions_of(request: Request, general: list[str]) -> dict[str, list[str]]:
    """By model: what to say first, from the model's own held-out prompts; `general` for a model without any."""
    return {model.name: for_page(model.suggestions, language(request)) or general for model in policies(request)}


@router.post("/chat/markdown")
async def render_markdown(request: Request, body: Markdown, caller: Page) -> JSON:
    """Render Markdown as sanitised HTML, for an answer that was stopped before it was rendered."""
    return JSON({"html": await request.app.state.text_work.formatted(caller.user_id, body.text)})


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
