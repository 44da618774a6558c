"""The web application: all routes of the API and the chat page, behind one authentication gate.

create_app(database, keys, registry)  ->  an ASGI app:   Envelope( Gate( routes ) )
"""

from pathlib import Path

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.responses import RedirectResponse

from tutelage.moderation.moderator import Moderator
from tutelage.server import health, metrics
from tutelage.server.api import (
    chat_completions,
    completions,
    models,
    moderations,
    responses,
    scores,
    stored_completions,
    stored_responses,
    tokenization,
)
from tutelage.server.chat import answers, consent, feedback, page
from tutelage.server.registry import Registry
from tutelage.server.text_work import TextWork
from tutelage.store.database import Database
from tutelage.web import errors, login
from tutelage.web.auth import Gate
from tutelage.web.envelope import Envelope
from tutelage.web.keys import KeyRing
from tutelage.web.limits import Limits
from tutelage.web.pages import Files, Pages
from tutelage.web.revocations import Revocations

HERE = Path(__file__).parent
API = (
    chat_completions,
    completions,
    stored_completions,
    responses,
    stored_responses,
    models,
    scores,
    moderations,
    tokenization,
)
CHAT_PAGE = (page, answers, feedback, consent)
SHARED = (health, metrics, login)


def create_app(database: Database, keys: KeyRing, registry: Registry, moderator: Moderator | None = None) -> FastAPI:
    """Build the application. Without a moderator, the default moderation policy applies."""
    no_telemetry: TelemetryConfig = {"tracing": False, "metrics": False}
    app = FastAPI(
        title="Tutelage", openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None, telemetry=no_telemetry
    )
    app.state.database, app.state.keys, app.state.registry = database, keys, registry
    app.state.limits, app.state.text_work = Limits(), TextWork(moderator or Moderator())
    app.state.revocations = Revocations(database)
    app.state.readiness = health.Readiness(database, registry)
    app.state.scoring, app.state.hashing = CapacityLimiter(1), CapacityLimiter(2)  # concurrent calls
    app.state.pages = Pages(HERE / "chat" / "templates")
    database.on_write_wait = metrics.WRITE_WAIT.observe
    errors.install(app)
    for routes in (*API, *CHAT_PAGE, *SHARED):
        app.include_router(routes.router)
    app.add_api_route("/", lambda: RedirectResponse("/chat", 303), include_in_schema=False)
    app.mount("/static/server", Files(directory=HERE / "chat" / "static"))
    app.mount("/static", Files(directory=HERE.parent / "web" / "static"))
    app.add_middleware(Gate, database=database, keys=keys, limits=app.state.limits)
    app.add_middleware(Envelope)  # the last one added is the outermost
    return app
