"""An answer on the chat page as it grows, and as HTML: its reasoning folded, then its text.

await WrittenAnswer(opened, formatted).feed(text) -> events: {"reasoning"}, {"text"}, {"block": html, "rest": text}
"""

from collections.abc import Awaitable, Callable

from markupsafe import Markup

from tutelage.server.sse import event
from tutelage.text.answer import AnswerReader
from tutelage.text.pieces import Content, Reasoning


class WrittenAnswer:
    """The parts of one answer so far."""

    def __init__(self, opened: bool, formatted: Callable[[str], Awaitable[str]]):
        """opened: the prompt has opened the reasoning. formatted: makes HTML of Markdown."""
        self.text = self.reasoning = ""
        self._formatted = formatted
        self._reader = AnswerReader(opened)
        self._rendered = 0  # how much of the text has been passed on as HTML

    async def feed(self, text: str, final: bool = False) -> list[bytes]:
        """Add what the model wrote, the last of it if `final`. Returns the events that tell the page."""
        events: list[bytes] = []
        for piece in self._reader.feed(text) + (self._reader.finish() if final else []):
            if isinstance(piece, Reasoning):
                self.reasoning += piece.text
                events.append(event({"reasoning": piece.text}))
            elif isinstance(piece, Content):
                events += await self._add_text(piece.text)
        return events

    async def _add_text(self, text: str) -> list[bytes]:
        """Its events: the text, and as HTML the Markdown blocks that it completes."""
        self.text += text
        events = [event({"text": text})]
        # A finished block ends outside any code fence, so each scan may begin where the last one ended.
        end = self._rendered + finished_blocks(self.text[self._rendered :])
        if end > self._rendered:
            self._rendered = end
            events.append(event({"block": await self._formatted(self.text[:end]), "rest": self.text[end:]}))
        return events

    async def html(self, label: str) -> str:
        """The answer as HTML. label: what the folded reasoning is called."""
        return await formatted_answer(self.text, self.reasoning, label, self._formatted)


async def formatted_answer(
    text: str, reasoning: str | None, label: str, formatted: Callable[[str], Awaitable[str]]
) -> str:
    """An answer as HTML; the arguments are those of WrittenAnswer."""
    return (folded(label, await formatted(reasoning)) if reasoning else "") + await formatted(text)


def folded(label: str, html: str) -> str:
    """The reasoning of an answer, from its HTML."""
    return str(Markup('<details class="reasoning"><summary>{}</summary>\n{}</details>\n').format(label, Markup(html)))


def finished_blocks(text: str) -> int:
    """The position where the last finished Markdown block ends: after a blank line outside any code fence."""
    end, fenced, position = 0, False, 0
    for line in text.splitlines(keepends=True):
        position += len(line)
        fenced ^= line.lstrip().startswith("```")
        if not line.strip() and not fenced:
            end = position
    return end
