"""The fewest tokens that a text can have, known before it is encoded.

    bounds_of(backend) -> TokenBounds, or None if one token may stand for any number of characters
    TokenBounds.least_tokens(text)

Encoding takes time in proportion to the text. A text that cannot fit the model's context need not be encoded.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from tutelage.text.token_bytes import byte_characters

COMPOSED = 3  # NFC joins at most this many bytes to one: three Hangul letters of 3 bytes become one of 3
NAME_BYTES = 16  # of the private name that stands for a control token in a sealed text (`control.py`)
KEEPS_TEXT = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"}  # pre-tokenizers that may drop none


@dataclass(frozen=True)
class TokenBounds:
    """How much of a text one token stands for at most."""

    longest: int  # bytes
    dropped: bytes = b""  # bytes without a token, which are left out of a text without a word

    def least_tokens(self, text: str) -> int:
        """The text has at least so many tokens."""
        return -(-len(text.encode("utf-8", "replace").translate(None, self.dropped)) // self.longest)


def bounds_of(backend: BackendTokenizer) -> TokenBounds | None:
    """None for a tokenizer that shortens texts, drops parts of them, or has one token for unknown words."""
    state = json.loads(backend.to_str())
    shrink, known = _shrinks(state["normalizer"]), _known_bytes(state)
    if shrink is None or known is None or not _keeps_text(state["pre_tokenizer"]):
        return None
    if any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"]):  # these swallow white space
        return None
    size = len if _is_byte_level(state) else lambda token: len(token.encode())
    longest = max(NAME_BYTES, *map(size, state["model"]["vocab"]))
    longest = max(longest, *(len(token["content"].encode()) for token in state["added_tokens"]), 0)
    return TokenBounds(shrink * longest, bytes(byte for byte in range(256) if byte not in known))


def _steps(part: dict[str, Any] | None, name: str) -> Iterator[dict[str, Any]]:
    """A normalizer or pre-tokenizer, or the members of a sequence of them."""
    if part is not None and part["type"] == "Sequence":
        for member in part[name]:
            yield from _steps(member, name)
    elif part is not None:
        yield part


def _shrinks(normalizer: dict[str, Any] | None) -> int | None:
    """By how much the normalizer may shorten a text at most; None if that is not known."""
    factor = 1
    for step in _steps(normalizer, "normalizers"):
        pattern = step.get("pattern", {}).get("String")
        if step["type"] == "NFC":
            factor *= COMPOSED
        elif step["type"] == "Replace" and pattern and len(step["content"].encode()) >= len(pattern.encode()):
            continue
        elif step["type"] != "Prepend":
            return None
    return factor


def _keeps_text(pre_tokenizer: dict[str, Any] | None) -> bool:
    steps = _steps(pre_tokenizer, "pretokenizers")
    return all(step["type"] in KEEPS_TEXT and step.get("behavior") != "Removed" for step in steps)


def _is_byte_level(state: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(state["pre_tokenizer"], "pretokenizers"))


def _known_bytes(state: dict[str, Any]) -> set[int] | None:
    """The bytes that have a token; None if unknown characters are joined to one token."""
    model = state["model"]
    if model["type"] != "BPE":
        return None
    if _is_byte_level(state):
        return {byte for byte, character in byte_characters().items() if character in model["vocab"]}
    complete = model["byte_fallback"] and {f"<0x{byte:02X}>" for byte in range(256)} <= model["vocab"].keys()
    return set(range(256)) if complete else None
