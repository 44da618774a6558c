"""Moderates, redacts and formats texts: short ones at once, long ones in a process of their own.

    await work.verdicts(owner, texts);  await work.redacted(owner, text);  await work.formatted(owner, text)

These functions hold Python's lock for up to a second per megabyte, which would stall the engine and the event loop.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from tutelage.bounded import Child, Failed, Overrun
from tutelage.data.privacy import redact
from tutelage.moderation.moderator import Moderator
from tutelage.server.worker import Worker, all_of, in_pieces
from tutelage.web.errors import ApiError
from tutelage.web.markdown import markdown

AT_ONCE = 2_000  # characters, which take 2 ms at most
MEMORY = 1024  # MiB
NICE = 5  # the engine goes first
log = logging.getLogger(__name__)


class TextWork:
    """The texts of all callers. The methods raise ApiError for a text that takes too long, or if too many wait."""

    def __init__(self, moderator: Moderator):
        self.moderator = moderator
        config = {
            name: str(v) if name in ("terms", "classifier") and v else v for name, v in asdict(moderator.config).items()
        }
        self._worker = Worker(
            Child("tutelage.server.text_work_process", memory=MEMORY, nice=NICE, set_up=lambda: config)
        )

    async def verdicts(self, owner: str, texts: Sequence[str]) -> list[dict[str, Any]]:
        """One verdict per text, as `Moderator.check` gives."""
        if sum(map(len, texts)) <= AT_ONCE:
            return self.moderator.check(texts)
        pieces = in_pieces(list(texts), len)
        asked = [self._ask(owner, sum(map(len, piece)), "verdicts", texts=piece) for piece in pieces]
        return [verdict for piece in await all_of(asked) for verdict in piece]

    async def redacted(self, owner: str, text: str) -> tuple[str, dict[str, int]]:
        """The text without personal details, and how many of each kind it had."""
        if len(text) <= AT_ONCE:
            redacted, counts = redact(text)
            return redacted, dict(counts)
        redacted, counts = await self._ask(owner, len(text), "redacted", text=text)
        return redacted, counts

    async def formatted(self, owner: str, text: str) -> str:
        """Markdown as sanitised HTML."""
        if len(text) <= AT_ONCE:
            return str(markdown(text))
        (html,) = await self._ask(owner, len(text), "formatted", texts=[text])
        return html

    def formatted_all(self, owner: str, texts: list[str]) -> list[str]:
        """Like `formatted`, for a thread that waits."""
        if sum(map(len, texts)) <= AT_ONCE:
            return [str(markdown(text)) for text in texts]
        pieces = in_pieces(texts, len)
        asked = [self._worker.submit(owner, sum(map(len, piece)), "formatted", texts=piece) for piece in pieces]
        return [html for piece in asked for html in piece.result()]

    def start(self) -> "Future[Any]":
        """Start the process before the first question, and build the tables that the first Chinese text needs.

        The result comes when the process is ready.
        """
        ready = self._worker.submit("", 0, "verdicts", texts=["你好"])
        self.moderator.check(["你好"])
        return ready

    def close(self) -> None:
        self._worker.close()

    async def _ask(self, owner: str, size: int, job: str, **arguments: Any) -> Any:
        try:
            return await self._worker.ask(owner, size, job, **arguments)
        except Overrun:
            raise ApiError(400, "The text takes too long to check. Shorten it.", code="invalid_value") from None
        except Failed as failed:
            log.error("the process for texts failed: %s", failed)
            raise
