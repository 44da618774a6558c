"""The web application: every route behind one gate.

create_app(database, keys, models)  ->  an ASGI app:   Envelope( Gate( routes ) )
"""

from pathlib import Path

from anyio import CapacityLimiter
from fastapi import FastAPI
from starlette.responses import RedirectResponse

from tutelage.moderation.moderator import Moderator
from tutelage.server import catalogue, chat, chat_page, completions, health, metrics, moderations, scores, stored
from tutelage.server.models import Registry
from tutelage.store.database import Database
from tutelage.web import errors, login
from tutelage.web.auth import Gate
from tutelage.web.envelope import Envelope
from tutelage.web.keys import KeyRing
from tutelage.web.limits import Limits
from tutelage.web.pages import Files, Pages

HERE = Path(__file__).parent
ROUTERS = (
    chat.router, completions.router, stored.router, catalogue.router, scores.router,
    moderations.router, health.router, metrics.router,
    login.router, chat_page.router,
)  # fmt: skip


def create_app(database: Database, keys: KeyRing, models: Registry, moderator: Moderator | None = None) -> FastAPI:
    """`models`: the registry of what is served, by name. Without a moderator the default policy holds."""
    app = FastAPI(
        title="Tutelage", openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None,
        telemetry={"tracing": False, "metrics": False},
    )  # fmt: skip
    app.state.database, app.state.keys, app.state.models = database, keys, models
    app.state.limits, app.state.moderator = Limits(), moderator or Moderator()
    app.state.readiness = health.Readiness(database, models)
    app.state.scoring, app.state.hashing = CapacityLimiter(1), CapacityLimiter(2)  # calls at once
    app.state.pages = Pages(HERE / "templates")
    database.on_write_wait = metrics.WRITE_WAIT.observe
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/", lambda: RedirectResponse("/chat", 303), include_in_schema=False)
    app.mount("/static/server", Files(directory=HERE / "static"))
    app.mount("/static", Files(directory=HERE.parent / "web" / "static"))
    app.add_middleware(Gate, database=database, keys=keys, limits=app.state.limits)
    app.add_middleware(Envelope)  # added last: outermost
    return app
