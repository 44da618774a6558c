"""Text as people typed it -> text a tokenizer should see.

Unicode is normalised (NFC, so that Chinese punctuation keeps its width), control and invisible characters go, runs of
white space become one. Turns left empty are dropped and their neighbours of one role merged; documents that repeat
another exactly are dropped. Cleaning twice is cleaning once.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tutelage.data.records import Messages

T = TypeVar("T")

# Cc control, Cf format, Cs half a surrogate pair. The joiners U+200C and U+200D stay: emoji and Persian need them.
_KEPT = {"\n", "\t", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u200c", "\u200d"}  # or white space
_BLANKS = re.compile(r"[^\S\n]+")
_EDGES = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")
_WHITE = re.compile(r"\s+")


def clean_line(text: str) -> str:
    """One chat turn: everything on one line."""
    if text.isascii() and text.isprintable() and "  " not in text and text == text.strip():
        return text  # nearly every line of English chat
    return _WHITE.sub(" ", _visible(text)).strip()


def clean_text(text: str) -> str:
    """A document: lines stay lines, with at most one empty line between paragraphs."""
    lines = _visible(text).replace("\r\n", "\n").replace("\r", "\n")
    return _EMPTY_LINES.sub("\n\n", _EDGES.sub("\n", _BLANKS.sub(" ", lines))).strip()


def clean_messages(messages: Messages) -> Messages:
    """Clean every turn, drop the empty ones, and merge what then stands side by side in one role."""
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
    """The first item of each key, in order."""
    seen: set[str] = set()
    for item in items:
        if key(item) not in seen:
            seen.add(key(item))
            yield item


def _visible(text: str) -> str:
    kept = (c for c in text if c in _KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return unicodedata.normalize("NFC", "".join(kept))
