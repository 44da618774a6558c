"""Redact personal data: text -> text with placeholders such as [EMAIL] and [PHONE], and counts.

Works for English and Chinese. A word boundary (backslash b) does not work next to Chinese characters, which count as
letters, so the patterns say in ASCII which characters may stand next to a match. Full-width letters and digits are
matched as their ASCII equivalents, one character for one, so positions in the text do not change. Names, postal
addresses and numbers written in words are not detected.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv6Address

from tutelage.data.identity_numbers import card_numbers, resident_numbers
from tutelage.data.phone_numbers import phone_numbers

PLACEHOLDERS = {kind: f"[{kind.upper()}]" for kind in ("url", "email", "id", "card", "ip", "phone")}

# ASCII without space, quotes, < and >. A final full stop is not part of the address.
_ADDRESS = r"[!#-;=?-~]*[0-9A-Za-z/_=#&~-]"
_URL = re.compile(
    rf"(?<![0-9A-Za-z])(?:https?://|ftp://|www\.(?=[0-9a-z-]+\.[a-z])){_ADDRESS}",
    re.IGNORECASE,
)
_DOMAIN = re.compile(
    r"(?<![0-9A-Za-z@._-])(?:[0-9a-z-]+\.)+(?:com|org|net|edu|gov|io|cn)(?![0-9A-Za-z@])" + f"(?:/{_ADDRESS})?",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"(?<![0-9A-Za-z._%+-])[0-9A-Za-z][0-9A-Za-z._%+-]*@(?:[0-9A-Za-z-]+\.)+[A-Za-z]{2,}")
_IPV4 = re.compile(r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]|\.[0-9])")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z:])")
_VERSION = re.compile(r"(?:\bv|\bversion|版本号?)[\s:.]*$", re.IGNORECASE)
# Fewer digits are not a number of a phone, a card or a person: skip the slow searches.
_SEVEN_DIGITS = re.compile(r"(?:[0-9][^0-9A-Za-z]{0,3}){6}[0-9]")
# Every match of the other patterns contains one of these.
_SUSPECT = re.compile(r"[@:]|\.[0-9A-Za-z]|" + _SEVEN_DIGITS.pattern)

Span = tuple[int, int, str]


def redact(text: str) -> tuple[str, Counter[str]]:
    """Replace personal data by placeholders. Returns the text and how often each kind was found."""
    spans, parts, done = find(text), [], 0
    for start, end, kind in spans:
        parts += [text[done:start], PLACEHOLDERS[kind]]
        done = end
    return "".join(parts) + text[done:], Counter(kind for _, _, kind in spans)


def find(text: str) -> list[Span]:
    """Spans (start, end, kind) in order, without overlap."""
    if text.isascii() and not _SUSPECT.search(text):
        return []  # fast path: nearly every line of chat
    plain = text if text.isascii() else text.translate(_PLAIN)
    spans: list[Span] = []
    claimed = bytearray(len(text))
    for start, end, kind in _candidates(plain):
        if not any(claimed[start:end]):  # the first pattern to claim a character keeps it
            claimed[start:end] = b"\1" * (end - start)
            spans.append((start, end, kind))
    return sorted(spans)


def _candidates(text: str) -> Iterator[Span]:
    """Spans that may overlap; the earlier one takes precedence."""
    kinds: list[tuple[str, Iterable[tuple[int, int]]]] = [
        ("url", (match.span() for match in _URL.finditer(text))),
        ("email", (match.span() for match in _EMAIL.finditer(text if "@" in text else ""))),
        ("url", (match.span() for match in _DOMAIN.finditer(text))),
        ("ip", _ip_addresses(text)),
    ]
    if _SEVEN_DIGITS.search(text):
        kinds += [("id", resident_numbers(text)), ("card", card_numbers(text)), ("phone", phone_numbers(text))]
    for kind, spans in kinds:
        for start, end in spans:
            yield start, end, kind


def _ip_addresses(text: str) -> Iterator[tuple[int, int]]:
    """Addresses of machines other than this one. What looks like a version or the number of a section is left out."""
    for match in _IPV4.finditer(text):
        version = _VERSION.search(text[max(0, match.start() - 12) : match.start()])
        parts = [int(part) for part in match[0].split(".")]
        if max(parts) in range(10, 256) and parts[0] not in (0, 127, 255) and not version:
            yield match.span()
    for match in _IPV6.finditer(text if text.count(":") > 2 else ""):
        with suppress(ValueError):
            if IPv6Address(match[0]) and max(map(len, match[0].split(":"))) > 2:
                yield match.span()


class _PlainCharacters(dict[int, str]):
    """Code points and their NFKC form if that is one character, so that positions do not change; filled when used."""

    def __missing__(self, code: int) -> str:
        plain = unicodedata.normalize("NFKC", chr(code))
        self[code] = plain if len(plain) == 1 else chr(code)
        return self[code]


_PLAIN = _PlainCharacters()
