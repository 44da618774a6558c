"""Translations of the pages: English and Chinese.

    _("Sign in")  ->  "Sign in" or "登录"

The English text is in the code and the templates; `locale/zh.po` holds the Chinese. Babel reads it when the server
first needs it, so nothing has to be compiled. A test checks that every message is translated.
"""

import io
from functools import cache
from gettext import GNUTranslations, NullTranslations
from pathlib import Path

from babel import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

LOCALES = ("en", "zh")
NAMES = {"en": "English", "zh": "中文"}
HTML_LANG = {"en": "en", "zh": "zh-Hans"}
FOLDER = Path(__file__).parent / "locale"


@cache
def translations(locale: str) -> NullTranslations:
    """The messages of one locale, "en" or "zh"."""
    if locale == "en":
        return NullTranslations()
    with open(FOLDER / f"{locale}.po", "rb") as file:
        catalogue = read_po(file, locale=locale)
    compiled = io.BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return GNUTranslations(compiled)


def choose(*wishes: str | None, accept: str = "") -> str:
    """The first wish that is a known locale, else the browser's preference (`accept`), else English."""
    for wish in wishes:
        if wish in LOCALES:
            return wish
    preferred = [part.split(";")[0].strip() for part in accept.split(",") if part.strip()]
    short = [name.partition("-")[0] for name in preferred]
    return negotiate_locale(short, LOCALES, sep="-") or "en"
