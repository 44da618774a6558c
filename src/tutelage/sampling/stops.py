"""Stop strings: strings that end a response.

    stop strings -> stop_at: does this response contain one?  cut: the text before the first one

A stop string may span several tokens and end in the middle of one, so the text is searched, not the ids.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
Stopped = Callable[[Sequence[int]], bool]


def stop_at(strings: Sequence[str], decode: Decode) -> Stopped:
    """A function that says whether the text of the ids contains a stop string. Call it after each new token.

    It decodes only the tail: a token is at least one byte, so no stop string reaches back further than its length.
    """
    longest = max((len(string.encode()) for string in strings), default=0)

    def stopped(ids: Sequence[int]) -> bool:
        tail = decode(ids[-longest:])
        return any(string in tail for string in strings)

    return stopped


def cut(text: str, strings: Sequence[str]) -> str:
    """The text before the first stop string."""
    places = [text.find(string) for string in strings]
    return text[: min((place for place in places if place >= 0), default=len(text))]
