"""From tokens to the text that may be shown: never half a character, never the beginning of a stop string.

    Detokenizer(...).feed(token)  ->  TextDelta(text, entries)   ...   .finish()  ->  the rest

A character may be spread over several tokens and a stop string over several more, so text is held back while it could
still become part of one. The entries, a token each with its log-probability, are handed out with the text they begin
in.
"""

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.engine.requests import Token
from tutelage.moderation.stream_filter import StreamFilter


@dataclass(frozen=True)
class TokenEntry:
    """One token of an answer, with what OpenAI's `logprobs` say of it."""

    id: int
    logprob: float
    top: list[tuple[int, float]]
    offset: int  # in code points, of the character that the token begins in


@dataclass(frozen=True)
class TextDelta:
    """Text that is certain, and the tokens that began in it."""

    text: str
    entries: tuple[TokenEntry, ...] = ()


class Detokenizer:
    """The text of one answer as it grows. `judge` may hold text back for longer, or end the answer."""

    def __init__(
        self,
        bytes_of_tokens: Sequence[bytes],
        stop: Sequence[str] = (),
        strip_first: bool = False,
        judge: StreamFilter | None = None,
    ):
        self._bytes, self._stop = bytes_of_tokens, tuple(stop)
        self._strip = strip_first  # SentencePiece puts a space before the first word of a text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._judge = judge
        self._held = ""
        self._passed = 0  # code points that are no longer held
        self._shown = 0  # code points handed out
        self._waiting: list[TokenEntry] = []
        self.stopped = False
        self.tokens = 0

    def feed(self, token: Token) -> TextDelta:
        """One more token; afterwards `stopped` says whether the text came to a stop string."""
        piece = self._bytes[token.id]
        if self._strip and piece:
            piece, self._strip = piece.removeprefix(b" "), False
        self.tokens += 1
        self._waiting.append(TokenEntry(token.id, token.logprob, token.top, self._passed + len(self._held)))
        self._held += self._decoder.decode(piece)
        return self._release(final=False)

    @property
    def blocked(self) -> bool:
        """Whether the judge ended the answer."""
        return self._judge is not None and self._judge.stopped

    @property
    def verdict(self) -> dict[str, Any]:
        """What the judge has found so far; empty without one."""
        return self._judge.verdict if self._judge else {}

    def finish(self) -> TextDelta:
        """What was held back, at the end of the answer; half a character becomes U+FFFD."""
        if self.stopped:
            return TextDelta("")
        self._held += self._decoder.decode(b"", True)
        return self._release(final=True)

    def _release(self, final: bool) -> TextDelta:
        places = [place for string in self._stop if (place := self._held.find(string)) >= 0]
        if places:
            self.stopped = True
            text, self._held = self._held[: min(places)], ""
        else:
            keep = 0 if final else self._possible_stop()
            text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._passed += len(text)
        if self._judge:
            text = self._judge.push(text) + (self._judge.finish() if final or self.stopped else "")
            self.stopped |= self.blocked
        self._shown += len(text)
        ready = math.inf if final and not self.stopped else self._shown
        entries = tuple(entry for entry in self._waiting if entry.offset < ready)
        self._waiting = self._waiting[len(entries) :]
        return TextDelta(text, entries)

    def _possible_stop(self) -> int:
        """The longest end of the held text that a stop string begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if self._held.endswith(tuple(s[:n] for s in self._stop if len(s) > n))), 0)


def name_of(token: bytes) -> str:
    """A token's text; one that is only part of a character is spelt as OpenAI does, so that names stay distinct."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
