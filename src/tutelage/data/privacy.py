"""Redact personal data: text -> text with [EMAIL], [PHONE] and [URL], and counts.

Works for English and Chinese. A word boundary (backslash b) does not work next to Chinese characters, which count as
letters, so the patterns say in ASCII which characters may stand next to a match. Full-width letters and digits are
matched as their ASCII equivalents, one character for one, so positions in the text do not change. Apart from Chinese
mobile numbers, phone numbers are found by the library `phonenumbers`, which knows every country's numbering plan.
Names, addresses and identity numbers are not detected yet.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from tutelage.errors import InputError

PLACEHOLDERS = {"email": "[EMAIL]", "phone": "[PHONE]", "url": "[URL]"}
PHONE_REGIONS = ("US", "CN")  # how to read numbers without a country code; those with one are found for any country

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
_EMAIL = re.compile(
    r"(?<![0-9A-Za-z._%+-])[0-9A-Za-z][0-9A-Za-z._%+-]*@(?:[0-9A-Za-z-]+\.)+[A-Za-z]{2,}(?![0-9A-Za-z])"
)
_CN_MOBILE = re.compile(r"(?<![0-9A-Za-z])(?:\+?86[- ]?)?1[3-9]\d(?:[- ]?\d{4}){2}(?![0-9A-Za-z])", re.ASCII)
_SEVEN_DIGITS = re.compile(r"(?:[0-9][^0-9A-Za-z]{0,3}){6}[0-9]")  # fewer are not a phone number: skip the slow search
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
    plain = text if text.isascii() else "".join(_plain(c) for c in text)
    spans: list[Span] = []
    claimed = bytearray(len(text))
    for start, end, kind in _candidates(plain):
        if not any(claimed[start:end]):  # the first pattern to claim a character keeps it
            claimed[start:end] = b"\1" * (end - start)
            spans.append((start, end, kind))
    return sorted(spans)


def _candidates(text: str) -> Iterator[Span]:
    """Spans that may overlap; the earlier one takes precedence."""
    for kind, pattern in (("url", _URL), ("email", _EMAIL), ("url", _DOMAIN), ("phone", _CN_MOBILE)):
        if kind == "email" and "@" not in text:
            continue
        for match in pattern.finditer(text):
            yield match.start(), match.end(), kind
    if _SEVEN_DIGITS.search(text):
        yield from _phone_numbers(text)


def _phone_numbers(text: str) -> Iterator[Span]:
    try:
        from phonenumbers import Leniency, PhoneNumberMatcher
    except ImportError:
        raise InputError("the package phonenumbers is not installed; run: pip install phonenumbers") from None
    for region in PHONE_REGIONS:
        for number in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
            yield number.start, number.end, "phone"


def _plain(character: str) -> str:
    """The NFKC form of a character if that is one character, so that positions do not change."""
    plain = unicodedata.normalize("NFKC", character)
    return plain if len(plain) == 1 else character
