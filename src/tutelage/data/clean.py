"""Text as people typed it -> clean text for the tokenizer.

Unicode is normalised to NFC, which keeps the full width of Chinese punctuation. Control and invisible characters are
removed, and runs of white space are collapsed. Empty turns are dropped, and neighbouring turns of the same role are
merged. `distinct` drops duplicates. Cleaning is idempotent.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tutelage.data.messages import Messages

T = TypeVar("T")

_INVISIBLE = ("Cc", "Cf", "Cs")  # Unicode categories to remove: control, format, lone surrogate
# Exceptions: white space, which is collapsed later, and the joiners U+200C and U+200D, which emoji and Persian need.
_KEPT = {"\n", "\t", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u200c", "\u200d"}
_BLANKS = re.compile(r"[^\S\n]+")
_EDGES = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")
_WHITE = re.compile(r"\s+")


def clean_line(text: str) -> str:
    """Clean one chat turn and put it on one line."""
    if text.isascii() and text.isprintable() and "  " not in text and text == text.strip():
        return text  # fast path: nearly every line of English chat
    return _WHITE.sub(" ", _visible(text)).strip()


def clean_text(text: str) -> str:
    """Clean a document. Line breaks are kept, with at most one empty line between paragraphs."""
    lines = _visible(text).replace("\r\n", "\n").replace("\r", "\n")
    return _EMPTY_LINES.sub("\n\n", _EDGES.sub("\n", _BLANKS.sub(" ", lines))).strip()


def clean_messages(messages: Messages) -> Messages:
    """Clean every turn, drop empty turns, and merge neighbouring user or assistant turns of the same role."""
    merged: Messages = []
    for message in messages:
        content = clean_line(message["content"])
        if not content:
            continue
        if merged and merged[-1]["role"] == message["role"] != "system":
            merged[-1]["content"] += " " + content
        else:
            merged.append({"role": message["role"], "content": content})
    return merged


def distinct(items: Iterable[T], key: Callable[[T], str]) -> Iterator[T]:
    """Yield the first item with each key, in order."""
    seen: set[str] = set()
    for item in items:
        if key(item) not in seen:
            seen.add(key(item))
            yield item


def _visible(text: str) -> str:
    kept = (c for c in text if c in _KEPT or unicodedata.category(c) not in _INVISIBLE)
    return unicodedata.normalize("NFC", "".join(kept))
