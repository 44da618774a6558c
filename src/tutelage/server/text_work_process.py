"""The process that moderates, redacts and formats long texts; `text_work.py` is the server's end of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage import bounded
from tutelage.data.privacy import redact
from tutelage.errors import InputError
from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.web.markdown import markdown


class TextFunctions:
    """The functions that the server may ask for."""

    moderator: Moderator

    def set_up(self, **config: Any) -> None:
        """config: the fields of ModerationConfig, paths as text."""
        paths = {name: Path(config[name]) if config[name] else None for name in ("terms", "classifier")}
        self.moderator = Moderator(ModerationConfig(**config | paths | {"blocked": tuple(config["blocked"])}))

    def verdicts(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return self.moderator.check(texts)

    def redacted(self, text: str) -> tuple[str, dict[str, int]]:
        """The text without personal details, and how many of each kind it had."""
        redacted, counts = redact(text)
        return redacted, dict(counts)

    def formatted(self, texts: Sequence[str]) -> list[str]:
        """Markdown as sanitised HTML."""
        return [str(markdown(text)) for text in texts]


def main() -> None:
    """What the process runs."""
    functions = TextFunctions()
    jobs = {name: getattr(functions, name) for name in ("set_up", "verdicts", "redacted", "formatted")}
    bounded.answer_all(jobs, refusals=(InputError,))
