"""Find Chinese identity numbers and bank card numbers: text -> spans.

Both carry a check digit, which keeps other long numbers out. Letters or Chinese characters may touch them.
"""

import re
from collections.abc import Iterator
from datetime import date

# GB 11643-1999: region, date of birth, serial number, check digit. People may write it in groups.
_RESIDENT = re.compile(
    r"(?<![0-9])[1-8][0-9]{5}[ -]?((?:18|19|20)[0-9]{2})[ -]?([01][0-9])[ -]?([0-3][0-9])[ -]?[0-9]{3}[0-9Xx]"
    r"(?![0-9]|[A-Za-z][0-9A-Za-z])"
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
# ISO/IEC 7812 issuers: UnionPay, Visa, Mastercard, American Express, JCB, Discover.
_CARD = re.compile(
    r"(?<![0-9])(?:62(?:[ -]?[0-9]){14,17}"
    r"|(?:4[0-9]|5[1-5]|2[2-7]|35|65)(?:[ -]?[0-9]){14}|6011(?:[ -]?[0-9]){12}|3[47](?:[ -]?[0-9]){13})(?![0-9])"
)


def resident_numbers(text: str) -> Iterator[tuple[int, int]]:
    """Spans of resident identity numbers whose date and check digit are right."""
    for match in _RESIDENT.finditer(text):
        if _is_date(*map(int, match.groups())) and _check_digit_fits(re.sub("[ -]", "", match[0])):
            yield match.span()


def card_numbers(text: str) -> Iterator[tuple[int, int]]:
    """Spans of bank card numbers whose check digit is right."""
    for match in _CARD.finditer(text):
        if _luhn(re.sub("[ -]", "", match[0])):
            yield match.span()


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        return bool(date(year, month, day))
    except ValueError:
        return False


def _check_digit_fits(number: str) -> bool:
    """ISO 7064, MOD 11-2."""
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, number[:17], strict=True))
    return "10X98765432"[total % 11] == number[17].upper()


def _luhn(number: str) -> bool:
    """The Luhn formula of ISO/IEC 7812-1: double every second digit from the right."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(number))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0
