"""Health checks for monitoring.

/healthz (/health)   the event loop runs
/readyz              database, tables, models and disk are all right; otherwise 503 with the reasons
"""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tutelage.server.registry import Registry
from tutelage.store import migrate
from tutelage.store.database import Database
from tutelage.web.errors import JSON

FRESH_SECONDS = 1.0

router = APIRouter(tags=["health"])


@router.get("/healthz")
@router.get("/health", include_in_schema=False)
async def alive() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "Not ready; the reasons are listed."}})
async def ready(request: Request) -> Response:
    problems = await request.app.state.readiness.problems()
    body: dict[str, Any] = {"status": "not ready" if problems else "ready", "problems": problems}
    return JSON(body, 503 if problems else 200)


class Readiness:
    """Caches the result of the checks, because anybody may ask at any rate and a check takes the database's lock."""

    def __init__(self, database: Database, registry: Registry):
        self._database, self._registry = database, registry
        self._checking = asyncio.Lock()
        self._problems: list[str] = []
        self._until = 0.0

    async def problems(self) -> list[str]:
        """The problems, at most FRESH_SECONDS old. Requests that arrive during a check share its result."""
        async with self._checking:
            if time.monotonic() >= self._until:
                self._problems = await run_in_threadpool(find_problems, self._database, self._registry)
                self._until = time.monotonic() + FRESH_SECONDS
            return self._problems


def find_problems(database: Database, registry: Registry) -> list[str]:
    """What keeps the server from working, without paths or names: /readyz is public."""
    problems = []
    try:
        database.ping()
        if migrate.current(database) != migrate.head():
            problems.append("the database's tables are from another version")
    except Exception as error:  # whatever the driver raises, the database does not work
        problems.append(f"the database does not accept writes ({type(error).__name__})")
    served = list(registry.served.values())
    if not served:
        problems.append("no model is loaded")
    if any(model.engine is not None and model.engine.failing for model in served):
        problems.append("a model fails on every request")
    if database.nearly_full:
        problems.append("the disk is nearly full")
    return problems
