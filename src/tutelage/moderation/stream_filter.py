"""An answer on its way out, with no word released that the policy may still take back.

    pieces of text -> pieces of text, a little later; the stream ends where a blocked term begins

Held back is the longest tail that could still become a term: most pieces pass at once, and a blocked term is never
shown in part. The classifier reads the answer now and then, what is new with a window before it; what it objects to
ends the answer there. So a token costs the same wherever in the answer it stands.
"""

from tutelage.moderation.classifier import WINDOW
from tutelage.moderation.moderator import Moderator
from tutelage.moderation.terms import searched

CLASSIFY_EVERY = 200  # characters
CONTEXT = 16  # characters before a term that decide whether it begins a word
STRETCH = 4  # how much longer than its searched form a term may be written: invisible characters, spaces between


class StreamFilter:
    """One answer. `push` each piece, `finish` at its end; both return what may be shown."""

    def __init__(self, moderator: Moderator):
        self.moderator = moderator
        self.terms = moderator.terms
        self.text = ""  # the whole answer so far
        self.shown = 0  # characters of it released
        self.classified = 0  # characters of it that the classifier has read
        self.verdict = moderator.verdict(set(), None)
        self.stopped = False

    def push(self, piece: str) -> str:
        """What may be shown now. Once `stopped` is true, nothing more will be."""
        self.text += piece
        return self._release(len(self.text) - self._uncertain(), CLASSIFY_EVERY)

    def finish(self) -> str:
        """The rest of the answer."""
        return self._release(len(self.text), 1)

    def _release(self, end: int, classify_from: int) -> str:
        """Judge what begins between the released text and `end`: anything earlier was judged when it was released."""
        if self.stopped:
            return ""
        context = max(0, self.shown - CONTEXT)
        termed = self.terms.categories(self.text[context:], self.shown - context, end - context)
        scores = None
        if len(self.text) - self.classified >= classify_from:
            scores = self.moderator.scores(self.text[max(0, self.classified - WINDOW) :])
            self.classified = len(self.text)
        noted = {name for name, found in self.verdict["categories"].items() if found}
        self.verdict = self.moderator.verdict(termed | noted, scores)
        self.stopped = self.moderator.stops("output", self.verdict)
        if self.stopped:
            return ""
        released, self.shown = self.text[self.shown : end], end
        return released

    def _uncertain(self) -> int:
        """Length of the longest tail that could become a term, or is one that may yet become another word."""
        for length in range(min(len(self.text) - self.shown, STRETCH * self.terms.longest), 0, -1):
            if not self.terms.beginnings.isdisjoint(beginnings(self.text[-length:])):
                return length
        return 0


def beginnings(text: str) -> list[str]:
    """What a text is as the beginning of something longer: a space at its end stays, or joins Chinese characters."""
    following = "|" if text[-1].isalnum() else "|一"
    return [searched(text + letter).removesuffix(letter) for letter in following]
