"""Strings that end an answer.

    stop strings -> has this answer come to one?  and its text without it

A string may be spread over several tokens, and a token over the end of it: so the text is searched, not the ids.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
Stopped = Callable[[Sequence[int]], bool]


def stop_at(strings: Sequence[str], decode: Decode) -> Stopped:
    """Whether the ids' text holds one of the strings, asked after each token.

    Only the tail is decoded: a token is one byte at least, so the longest string cannot reach further back.
    """
    longest = max((len(string.encode()) for string in strings), default=0)

    def stopped(ids: Sequence[int]) -> bool:
        tail = decode(ids[-longest:])
        return any(string in tail for string in strings)

    return stopped


def cut(text: str, strings: Sequence[str]) -> str:
    """The text up to the first of the strings."""
    places = [text.find(string) for string in strings]
    return text[: min((place for place in places if place >= 0), default=len(text))]
