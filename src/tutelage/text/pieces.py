"""What an answer consists of: reasoning, content and function calls, in pieces as the answer grows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reasoning:
    """Text between <think> marks."""

    text: str


@dataclass(frozen=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """The beginning of a function call. `index` counts the calls of an answer."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of a call's arguments. All texts of one call together are a JSON object."""

    index: int
    text: str


Piece = Reasoning | Content | CallBegin | CallArguments


def unfinished(text: str, mark: str) -> int:
    """Length of the longest tail of a text that is the beginning of a mark, but not all of it."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(mark[:n])), 0)
