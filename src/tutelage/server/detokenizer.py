"""Turns tokens into text that may be shown: never half a character, never the beginning of a stop string.

    Detokenizer(...).feed(token)  ->  TextDelta(text, entries)   ...   .finish()  ->  the rest

A character or a stop string may span several tokens, so text is withheld while it could still become part of a stop
string. Each token comes with its log-probability, as an entry of the delta in which its text begins.
"""

import codecs
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.engine.requests import Token
from tutelage.moderation.stream_filter import StreamFilter


@dataclass(frozen=True)
class TokenEntry:
    """One generated token, with the data for OpenAI's `logprobs`."""

    id: int
    logprob: float
    top: list[tuple[int, float]]  # the most likely tokens and their log-probabilities
    offset: int  # position of the token's first character in the text, in code points


@dataclass(frozen=True)
class TextDelta:
    """Text that will not change, and the tokens that begin in it."""

    text: str
    entries: tuple[TokenEntry, ...] = ()


class Detokenizer:
    """The text of one completion as it grows. A stream filter may withhold text for longer, or end the completion."""

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        stop: Sequence[str] = (),
        strip_first: bool = False,
        stream_filter: StreamFilter | None = None,
        marks: Mapping[int, bytes] | None = None,
    ):
        """marks: the text of special tokens that are to be seen; the others have none."""
        self._marks = marks or {}
        self._bytes, self._stop = token_bytes, tuple(stop)
        self._strip = strip_first  # SentencePiece puts a space before the first word of a text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._filter = stream_filter
        self._withheld = ""
        self._passed = 0  # code points that are no longer withheld
        self._shown = 0  # code points handed out
        self._waiting: list[TokenEntry] = []
        self.stopped = False
        self.tokens = 0

    def feed(self, token: Token) -> TextDelta:
        """Add a token. Afterwards `stopped` is true if the text reached a stop string or the filter ended it."""
        added = self._marks.get(token.id) or self._bytes[token.id]
        if self._strip and added:
            added, self._strip = added.removeprefix(b" "), False
        self.tokens += 1
        self._waiting.append(TokenEntry(token.id, token.logprob, token.top, self._passed + len(self._withheld)))
        self._withheld += self._decoder.decode(added)
        return self._release(final=False)

    @property
    def blocked(self) -> bool:
        """Whether the stream filter ended the completion."""
        return self._filter is not None and self._filter.stopped

    @property
    def verdict(self) -> dict[str, Any]:
        """The stream filter's verdict so far; empty without a filter."""
        return self._filter.verdict if self._filter else {}

    def finish(self) -> TextDelta:
        """The withheld rest, at the end of the completion. An incomplete character becomes U+FFFD."""
        if self.stopped:
            return TextDelta("")
        self._withheld += self._decoder.decode(b"", True)
        return self._release(final=True)

    def ending(self, stop: Token | None) -> tuple[TokenEntry, ...]:
        """After `finish`: the sampled tokens without text, which are the stop token or those that a stop string cut.

        There are none if the stream filter ended the completion, because they would reveal what it withheld.
        """
        if self.blocked:
            return ()
        if self.stopped:  # by a stop string; the engine may have sampled more since
            return tuple(replace(entry, offset=self._shown) for entry in self._waiting)
        return (TokenEntry(stop.id, stop.logprob, stop.top, self._shown),) if stop else ()

    def _release(self, final: bool) -> TextDelta:
        stops = [index for string in self._stop if (index := self._withheld.find(string)) >= 0]
        if stops:
            self.stopped = True
            text, self._withheld = self._withheld[: min(stops)], ""
        else:
            end = len(self._withheld) - (0 if final else self._possible_stop())
            text, self._withheld = self._withheld[:end], self._withheld[end:]
        self._passed += len(text)
        if self._filter:
            text = self._filter.push(text) + (self._filter.finish() if final or self.stopped else "")
            self.stopped |= self.blocked
        self._shown += len(text)
        ready = math.inf if final and not self.stopped else self._shown
        entries = tuple(entry for entry in self._waiting if entry.offset < ready)
        self._waiting = self._waiting[len(entries) :]
        return TextDelta(text, entries)

    def _possible_stop(self) -> int:
        """Length of the longest tail of the withheld text that is the beginning of a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        lengths = range(min(longest, len(self._withheld)), 0, -1)
        return next((n for n in lengths if self._withheld.endswith(tuple(s[:n] for s in self._stop if len(s) > n))), 0)


def name_of(token: bytes) -> str:
    """A token's text. A token that is only part of a character is written as OpenAI does, so that names are unique."""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)
