"""Reads an answer as it grows: its reasoning, its content and its function calls.

AnswerReader(opened, finder).feed(text) -> pieces   finish() -> the rest
"""

from collections.abc import Iterable

from tutelage.text.control import THINK
from tutelage.text.pieces import Content, Piece
from tutelage.text.reasoning import ReasoningSplitter
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.tool_calls import CallFinder
from tutelage.text.tool_syntax import ToolSyntax


def visible_marks(tokenizer: Tokenizer, syntax: ToolSyntax | None = None) -> dict[int, bytes]:
    """The text of the special tokens that an answer's reader must see; other special tokens have none."""
    marks = (*THINK, *(syntax.marks if syntax else ()))
    return {tokenizer.special[mark]: mark.encode() for mark in marks if mark in tokenizer.special}


class AnswerReader:
    """One answer. Without a finder it has no calls."""

    def __init__(self, opened: bool = False, finder: CallFinder | None = None):
        """opened: the prompt has opened the reasoning."""
        self._splitter, self._finder = ReasoningSplitter(opened), finder

    @property
    def done(self) -> bool:
        """Whether the answer has all the calls that it may have."""
        return self._finder is not None and self._finder.done

    def feed(self, text: str) -> list[Piece]:
        """Add text to the answer."""
        return self._with_calls(self._splitter.feed(text))

    def finish(self) -> list[Piece]:
        """The withheld rest, at the end of the answer."""
        pieces = self._with_calls(self._splitter.finish())
        return pieces + (self._finder.finish() if self._finder else [])

    def _with_calls(self, pieces: list[Piece]) -> list[Piece]:
        if self._finder is None:
            return pieces
        found = ((self._finder.feed(p.text) if isinstance(p, Content) else [p]) for p in pieces)
        return [piece for part in found for piece in part]

    def reasoning_tokens(self, offsets: Iterable[int]) -> int:
        """How many tokens of the answer are reasoning, by the positions in code points where they begin."""
        return self._splitter.tokens(offsets)
