"""Moderation of text while it is generated: a blocked term is never shown, not even in part.

    chunks of text -> chunks of text, slightly delayed; the stream ends before a blocked term

The filter withholds the longest tail of the text that could still become a term; most chunks pass at once. Every
CLASSIFY_EVERY characters the classifier reads the new text and one window before it. If the policy blocks what it
finds, the text ends there. The cost per token does not grow with the length of the text.
"""

from tutelage.moderation.classifier import WINDOW
from tutelage.moderation.moderator import Moderator
from tutelage.moderation.terms import searched

CLASSIFY_EVERY = 200  # characters
CONTEXT = 16  # characters before a term that are read, to see whether it begins a word
STRETCH = 4  # how many times longer than its normal form a term may be written (invisible characters, spaces)


class StreamFilter:
    """Filters one text. `push` every chunk and `finish` at the end; both return the text that may be shown."""

    def __init__(self, moderator: Moderator):
        self.moderator = moderator
        self.terms = moderator.terms
        self.text = ""  # the whole text so far
        self.shown = 0  # how many of its characters were released
        self.classified = 0  # how many of its characters the classifier has read
        self.verdict = moderator.verdict(set(), None)
        self.stopped = False

    def push(self, chunk: str) -> str:
        """The text that may be shown now. Once `stopped` is true, it is always empty."""
        self.text += chunk
        return self._release(len(self.text) - self._uncertain(), CLASSIFY_EVERY)

    def finish(self) -> str:
        """The rest of the text."""
        return self._release(len(self.text), 1)

    def _release(self, end: int, classify_from: int) -> str:
        """Check the terms that begin between the released text and `end`; earlier ones were checked before."""
        if self.stopped:
            return ""
        context = max(0, self.shown - CONTEXT)
        termed = self.terms.categories(self.text[context:], self.shown - context, end - context)
        scores = None
        if len(self.text) - self.classified >= classify_from:
            scores = self.moderator.scores(self.text[max(0, self.classified - WINDOW) :])
            self.classified = len(self.text)
        flagged = {name for name, is_flagged in self.verdict["categories"].items() if is_flagged}
        self.verdict = self.moderator.verdict(termed | flagged, scores)
        self.stopped = self.moderator.stops("output", self.verdict)
        if self.stopped:
            return ""
        released, self.shown = self.text[self.shown : end], end
        return released

    def _uncertain(self) -> int:
        """Length of the longest tail that could become a term, or is a term that could become another word."""
        for length in range(min(len(self.text) - self.shown, STRETCH * self.terms.longest), 0, -1):
            if not self.terms.beginnings.isdisjoint(beginnings(self.text[-length:])):
                return length
        return 0


def beginnings(text: str) -> list[str]:
    """The normal forms of a text that will go on: a space at its end stays, or vanishes between Chinese characters."""
    following = "|" if text[-1].isalnum() else "|一"
    return [searched(text + letter).removesuffix(letter) for letter in following]
