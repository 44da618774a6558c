"""Is the server alive, and can it work: for whoever watches over it.

/healthz (/health)   the event loop turns          /readyz   database, tables, models, disk; 503 with the reasons
"""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from tutelage.server.models import Registry
from tutelage.store import migrate
from tutelage.web.auth import Store
from tutelage.web.errors import JSON

router = APIRouter(tags=["health"])


@router.get("/healthz")
@router.get("/health", include_in_schema=False)
async def alive() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "Not ready; the reasons are listed."}})
def ready(request: Request, database: Store) -> Response:
    problems = list(find_problems(database, request.app.state.models))
    body: dict[str, Any] = {"status": "not ready" if problems else "ready", "problems": problems}
    return JSON(body, 503 if problems else 200)


def find_problems(database: Store, models: Registry) -> list[str]:
    """What keeps the server from its work, in words without paths or names."""
    problems = []
    try:
        database.ping()
        if migrate.current(database) != migrate.head():
            problems.append("the database's tables are of another version")
    except Exception as error:  # any failure of any driver means the same here
        problems.append(f"the database does not take writes ({type(error).__name__})")
    if not models.names():
        problems.append("no model is loaded")
    if database.nearly_full:
        problems.append("the disk is nearly full")
    return problems
