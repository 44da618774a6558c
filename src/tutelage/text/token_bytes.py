"""The bytes that the characters of a token stand for, in the two ways in which vocabularies write them."""

import re


def sentencepiece_bytes(token: str) -> bytes:
    """The bytes of a SentencePiece token: a byte written as <0x0A>, or text in which U+2581 stands for a space."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def byte_level_bytes(token: str, byte: dict[str, int]) -> bytes:
    """The bytes of a byte-level token. Added tokens may have other characters, and then stand for their own text."""
    try:
        return bytes(map(byte.__getitem__, token))
    except KeyError:
        return token.encode()


def byte_characters() -> dict[int, str]:
    """GPT-2's alphabet (Radford et al. 2019): printable bytes stand for themselves, the others start at U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(256 + i) for i, value in enumerate(others)}
