"""Is the server alive, and can it work: for whoever watches over it.

/healthz (/health)   the event loop turns          /readyz   database, tables, models, disk; 503 with the reasons
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
    """What was found a moment ago: anybody may ask, as often as they like, and looking takes the writers' lock."""

    def __init__(self, database: Database, registry: Registry):
        self._database, self._registry = database, registry
        self._looking = asyncio.Lock()
        self._found: list[str] = []
        self._until = 0.0

    async def problems(self) -> list[str]:
        """Those of the last second; whoever asks while they are looked for waits for the same answer."""
        async with self._looking:
            if time.monotonic() >= self._until:
                self._found = await run_in_threadpool(find_problems, self._database, self._registry)
                self._until = time.monotonic() + FRESH_SECONDS
            return self._found


def find_problems(database: Database, registry: Registry) -> list[str]:
    """What keeps the server from its work, in words without paths or names."""
    problems = []
    try:
        database.ping()
        if migrate.current(database) != migrate.head():
            problems.append("the database's tables are of another version")
    except Exception as error:  # any failure of any driver means the same here
        problems.append(f"the database does not take writes ({type(error).__name__})")
    served = list(registry.served.values())
    if not served:
        problems.append("no model is loaded")
    if any(model.engine is not None and model.engine.failing for model in served):
        problems.append("a model fails whatever it is asked")
    if database.nearly_full:
        problems.append("the disk is nearly full")
    return problems
