"""Find phone numbers in English and Chinese text: text -> spans.

Chinese numbers are found by their shape, also where letters or Chinese characters touch them (`wx13800138000`) and with
an extension (`010-88888888-801`). All other numbers are found by the library `phonenumbers`, which knows every
country's numbering plan but rejects numbers that letters touch. Plain digits without a country code may also be an
order number, an ISBN or an amount. The words around them decide.
"""

import re
from collections.abc import Iterator

from tutelage.errors import InputError

REGIONS = ("US", "CN")  # how to read numbers without a country code; those with one are found for any country
AROUND = 24  # characters before a number that decide what it is

# Between groups of digits: a space, a dash or a character without width, at most two of them.
_GAP = r"[ \t\-\u00ad\u2010-\u2015\u2212\u200b-\u200d\u2060\ufeff]{0,2}"
_DOT = r"[.\u00b7\u2022\u2027\u30fb]"
_CHINA = rf"(?:\((?:\+|00)?86\)|(?:\+|00)?86){_GAP}"
_AREA = r"(?:10|2[0-57-9]|[3-9][0-9]{2})"
_EXTENSION = re.compile(
    rf"{_GAP}(\()?[,;]?{_GAP}(?:转|轉|分机|分機|extension|ext|x|\#)[.:]?{_GAP}[0-9]{{1,6}}(?![0-9])(?(1)\)?)"
    r"|[\-\u2010-\u2015][0-9]{1,5}(?![0-9\-])",
    re.IGNORECASE,
)
_MOBILE = re.compile(
    rf"(?<![0-9])(?:{_CHINA}|[0+])?"
    rf"(?:1[3-9][0-9]{_GAP}[0-9]{{4}}{_GAP}[0-9]{{4}}"
    rf"|1[3-9][0-9]{_DOT}[0-9]{{4}}{_DOT}[0-9]{{4}}"
    r"|1[3-9][0-9]{2}([ -])[0-9]{4}\1[0-9]{3})(?![0-9])"
)
_LANDLINE = re.compile(
    rf"(?<![0-9])(?:\(0{_AREA}\)|0{_AREA}|(?:\+|00)86{_GAP}\(?0?{_AREA}\)?|86[ -]\(?0?{_AREA}\)?)"
    rf"{_GAP}[2-9][0-9]{{2,3}}{_GAP}[0-9]{{4}}(?![0-9])"
)

_WORDS = "tel|telephone|phone|mobile|mob|cell|call|fax|sms|text|dial|ring|wx|vx|wechat|weixin|whatsapp|dianhua|shouji"
_PHONE_WORD = re.compile(
    rf"(?<![A-Za-z])(?:{_WORDS})(?![A-Za-z])|电话|手机|号码|热线|传真|微信|[拨打][:\s]*$", re.IGNORECASE
)
_GLUED = re.compile(rf"(?<![0-9A-Za-z])(?:{_WORDS})(?=[+(]?[0-9])", re.IGNORECASE)
_ISBN = re.compile(r"\b(?:ISBN|ISSN)[-\s0-9:]*$", re.IGNORECASE)
_OTHER_WORD = re.compile(
    r"(?:\b(?:order|invoice|ticket|id|sku|ref|reference|serial|tracking|account|code|case|item|part|qq)\b[^0-9A-Za-z]*"
    r"(?:(?:number|no|nr|is)\b[^0-9A-Za-z]*)?|#|[\u4e00-\u9fff][:\s]*)$",
    re.IGNORECASE,
)
# An amount has a unit or decimals. 元 also begins the names of holidays.
_AMOUNT = re.compile(
    r"\.[0-9]{1,2}(?![0-9])|\s?(?:元(?![旦宵月])|[美日欧港韩]元|港币|人民币|[万亿]元|字节"
    r"|(?:bytes?|bits?|[kmgt]i?b|hz|usd|rmb|cny|eur|yuan|dollars?|euros?)(?![0-9A-Za-z]))",
    re.IGNORECASE,
)
_LETTERS_BEFORE, _LETTERS_AFTER = re.compile(r"[0-9A-Za-z]+$"), re.compile(r"[0-9A-Za-z]*")


def phone_numbers(text: str) -> Iterator[tuple[int, int]]:
    """Spans that may overlap; the earlier one takes precedence. Raises InputError if `phonenumbers` is missing.

    text: full-width characters already mapped to their ASCII equivalents.
    """
    for pattern in (_MOBILE, _LANDLINE):
        for match in pattern.finditer(text):
            end = _with_extension(text, match.end())
            if not (_is_amount(text, match.start(), end) or _is_code(text, match.start(), end)):
                yield match.start(), end
    yield from _of_any_country(text)


def _of_any_country(text: str) -> Iterator[tuple[int, int]]:
    try:
        from phonenumbers import Leniency, PhoneNumberMatcher
    except ImportError:
        raise InputError("the package phonenumbers is not installed; run: pip install phonenumbers") from None
    apart = _GLUED.sub(lambda word: " " * len(word[0]), text)
    for region in REGIONS:
        for number in PhoneNumberMatcher(apart, region, leniency=Leniency.VALID):
            if number.raw_string.startswith("+") or not _means_something_else(text, number.start, number.end):
                yield number.start, _with_extension(text, number.end)


def _with_extension(text: str, end: int) -> int:
    extension = _EXTENSION.match(text, end)
    return extension.end() if extension else end


def _is_amount(text: str, start: int, end: int) -> bool:
    """Whether a unit or decimals follow, or the digits are decimals themselves: `0.13800138000`."""
    return bool(_AMOUNT.match(text, end)) or re.search(r"(?<![0-9])0\.$", text[max(0, start - 3) : start]) is not None


def _is_code(text: str, start: int, end: int) -> bool:
    """Whether letters around a number make it part of a code: `X13800138000Y`.

    Letters on one side do not, nor does a word for a phone before it: `13800138000wx`, `Tel13800138000ok`.
    """
    found, after = _LETTERS_BEFORE.search(text[max(0, start - AROUND) : start]), _LETTERS_AFTER.match(text, end)
    before, behind = found[0] if found else "", after[0] if after else ""
    if not (before + behind).isalpha():
        return bool(before + behind)
    return bool(before and behind) and not _PHONE_WORD.fullmatch(before)


def _means_something_else(text: str, start: int, end: int) -> bool:
    """Whether digits in the form of a phone number are an ISBN, an amount, a decimal, or the number of something else.

    Ten or eleven digits without a separator are taken for a phone number only where no other meaning is likely.
    """
    before, digits = text[max(0, start - AROUND) : start], text[start:end]
    if _ISBN.search(before) or _is_amount(text, start, end) or re.fullmatch(r"[0-9]+\.[0-9]+", digits):
        return True
    if not digits.isdigit() or digits.startswith("0") or _PHONE_WORD.search(before):
        return False
    return len(digits) > 10 or _OTHER_WORD.search(before) is not None
