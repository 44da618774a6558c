"""Separates the reasoning of an answer from its content, as the answer grows.

    ReasoningSplitter(opened).feed(text) -> Reasoning(text), Content(text) ...   finish() -> the rest

Reasoning stands between <think> marks at the beginning of an answer. Some generation prompts (DeepSeek-R1's) open it
already. Marks further on are content, because an answer may write about them. An answer that ends within its reasoning
has no content.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from tutelage.text.control import THINK
from tutelage.text.pieces import Content, Piece, Reasoning, unfinished
from tutelage.text.tokenizer import Tokenizer

OPEN, CLOSE = THINK
TAIL = 16  # tokens at the end of a prompt, enough for a mark and white space
Thinking = Literal["opened", "possible", "none"]


def thinking_after(tokenizer: Tokenizer, prompt: Sequence[int]) -> Thinking:
    """What a prompt says about the reasoning: it is opened, it may come, or it does not come."""
    end = tokenizer.decode(prompt[-TAIL:], skip_special=False).rstrip()
    if end.endswith(OPEN):
        return "opened"
    known = OPEN in tokenizer.chat_template or OPEN in tokenizer.added
    return "possible" if known and not end.endswith(CLOSE) else "none"


class ReasoningSplitter:
    """The two parts of one answer. White space around the reasoning belongs to neither."""

    def __init__(self, opened: bool = False):
        self._inside = False
        self._content = False  # whether the content has begun
        self._withheld = ""
        self._position = 0  # of the withheld text, in code points of the answer
        self._spans: list[tuple[int, float]] = []  # where reasoning begins and ends
        if opened:
            self._open(0)

    def _open(self, length: int) -> None:
        """Begin the reasoning after a mark that ends `length` characters further on."""
        self._take(length)
        self._inside, self._fresh = True, True
        self._spans.append((self._position, math.inf))

    def _take(self, length: int) -> None:
        self._withheld = self._withheld[length:]
        self._position += length

    def feed(self, text: str) -> list[Piece]:
        """Add text to the answer."""
        if self._content:
            return [Content(text)] if text else []
        self._withheld += text
        pieces: list[Piece] = []
        while not self._content and (piece := self._reasoning() if self._inside else self._before()):
            pieces += [piece] if piece.text else []
        return pieces

    def finish(self) -> list[Piece]:
        """The withheld rest, at the end of the answer."""
        rest, self._withheld = self._withheld, ""
        if self._inside:
            return [Reasoning(self._trimmed(rest.rstrip()))] if rest.strip() else []
        rest = rest.lstrip() if self._spans else rest
        return [Content(rest)] if rest else []

    def _before(self) -> Reasoning | Content | None:
        """Before the content: an opening mark, or the content's first text. None if it could become either."""
        text = self._withheld.lstrip()
        if text.startswith(OPEN):
            self._open(len(self._withheld) - len(text) + len(OPEN))
            return Reasoning("")
        if OPEN.startswith(text):
            return None
        self._content, text = True, text if self._spans else self._withheld
        self._withheld = ""
        return Content(text)

    def _reasoning(self) -> Reasoning | None:
        """The next piece of reasoning. None if more text is needed to tell it from the closing mark."""
        text, mark, _ = self._withheld.partition(CLOSE)
        if mark:
            self._spans[-1] = (self._spans[-1][0], self._position + len(text))
            self._take(len(text) + len(mark))
            self._inside = False
            return Reasoning(self._trimmed(text.rstrip()))
        text = text[: len(text) - unfinished(text, CLOSE)].rstrip()
        self._take(len(text))
        return Reasoning(self._trimmed(text)) if text else None

    def _trimmed(self, text: str) -> str:
        """Reasoning without the white space at its very beginning."""
        text = text.lstrip() if self._fresh else text
        self._fresh = self._fresh and not text
        return text

    def tokens(self, offsets: Iterable[int]) -> int:
        """How many tokens are reasoning, by the positions where they begin in the answer. The marks are not."""
        return sum(any(first <= offset < after for first, after in self._spans) for offset in offsets)
