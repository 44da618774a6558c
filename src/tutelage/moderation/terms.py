"""Lists of terms, and where they stand in a text.

    [violence]           a category of OpenAI's, then one term a line; # opens a comment
    blow up the school   words as such: "ass" is not found in "class"
    behead*              also as the beginning of a longer word
    砍死你                scripts written without spaces: anywhere
    [allow]
    dick van dyke        what stands inside an allowed phrase does not count

A text is folded before it is searched (compatibility forms, case, traditional characters, invisible ones, runs of
spaces), and so are the terms: full-width letters, capitals, 砍死妳 and zero-width joiners hide nothing. Nor do spaces
and punctuation between Chinese or Japanese characters, 砍 死，你, in terms of three and more: two meet by chance at any
comma. All terms are looked for in one pass, however many there are (Aho & Corasick 1975).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from ahocorasick_rs import AhoCorasick
from opencc import OpenCC

from tutelage.data.records import read_text
from tutelage.errors import InputError

CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
ALLOW = "allow"
BUILT_IN = tuple(sorted((Path(__file__).parent / "terms").glob("*.txt")))
FIRST_UNSPACED = "\u2e80"  # from the CJK radicals on, scripts are mostly written without spaces between words
_HAN_OR_KANA = r"[^\W\0-\u2e7f\ua4d0-\U0001ffff]"  # Korean, further up, has spaces between words
_APART = re.compile(rf"(?<={_HAN_OR_KANA})[\W_]+(?={_HAN_OR_KANA})")


def searched(text: str) -> str:
    """The text as terms are looked for in it: folded, and nothing that is no letter between Chinese characters."""
    return _APART.sub("", fold(text))


def is_short(words: str) -> bool:
    """One or two Chinese or Japanese characters, which are a term only where they stand together."""
    return len(words) <= 2 and min(words) >= FIRST_UNSPACED


def fold(text: str) -> str:
    """One form for many: NFKC, casefold, simplified characters, no invisible ones, one space for several."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if not folded.isascii():
        folded = "".join(c for c in folded if not invisible(c)).translate(simplified())
    return " ".join(folded.split())


@cache
def simplified() -> dict[int, str]:
    """The simplified form of every character that has one, by OpenCC's table: one for one, so that no place moves."""
    convert = OpenCC("t2s").convert
    forms = {point: convert(chr(point)) for point in range(0x3400, 0xA000)}
    return {point: form for point, form in forms.items() if len(form) == 1 and form != chr(point)} | {ord("妳"): "你"}


def invisible(character: str) -> bool:
    """Zero-width characters, direction marks, soft hyphens, variation selectors: they change nothing one reads."""
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


@dataclass(frozen=True)
class Term:
    """One line of a list."""

    words: str  # as it is searched for
    category: str  # one of CATEGORIES, or "allow"
    open_end: bool  # written with * at its end: a longer word may begin with it


class TermList:
    """Terms that are searched for together."""

    def __init__(self, terms: Iterable[Term]):
        self.terms = list(dict.fromkeys(terms))
        self.longest = max((len(term.words) for term in self.terms), default=0)
        allowed = [term for term in self.terms if term.category == ALLOW]
        blocked = [term for term in self.terms if term.category != ALLOW]
        self._searches = [
            (searched, Search([*allowed, *(term for term in blocked if not is_short(term.words))])),
            (fold, Search([*allowed, *(term for term in blocked if is_short(term.words))])),
        ]

    @classmethod
    def read(cls, paths: Iterable[Path]) -> "TermList":
        """The terms of these files, taken together. Raises InputError with the line that is no term."""
        return cls(term for path in paths for term in read_terms(path))

    @cached_property
    def beginnings(self) -> frozenset[str]:
        """Every beginning of every term, and the term itself: the next letter may make it another word."""
        return frozenset(term.words[:end] for term in self.terms for end in range(1, len(term.words) + 1))

    def categories(self, text: str, begin: int = 0, end: int | None = None) -> set[str]:
        """The categories of the terms that stand in the text; with `begin` and `end` of those that begin in between."""
        return {name for form, search in self._searches for name in search.categories(text, form, begin, end)}


class Search:
    """Some of the terms, in one automaton."""

    def __init__(self, terms: list[Term]):
        self.terms = terms
        self._automaton = AhoCorasick([term.words for term in terms])

    def categories(self, text: str, form: Callable[[str], str], begin: int, end: int | None) -> set[str]:
        """Of the terms that stand in this form of the text and begin between these places of the text."""
        whole = form(text)
        low, high = place(text, begin, form), len(whole) if end is None else place(text, end, form)
        found = [(start, stop, self.terms[term]) for term, start, stop in self._matches(whole)]
        found = [match for match in found if whole_words(whole, *match)]
        allowed = [(start, stop) for start, stop, term in found if term.category == ALLOW]
        return {
            term.category
            for start, stop, term in found
            if low <= start < high and term.category != ALLOW and not any(s <= start and stop <= e for s, e in allowed)
        }

    def _matches(self, whole: str) -> list[tuple[int, int, int]]:
        return self._automaton.find_matches_as_indexes(whole, overlapping=True) if self.terms else []


def place(text: str, index: int, form: Callable[[str], str]) -> int:
    """Where in a form of the text a character of it stands, at the earliest: the one after it may join it."""
    return len(form(text[:index] + "一")) - 1


def whole_words(text: str, start: int, end: int, term: Term) -> bool:
    """Whether a match at text[start:end] cuts no word in two."""
    before = start > 0 and spaced(text[start - 1]) and spaced(text[start])
    after = end < len(text) and spaced(text[end]) and spaced(text[end - 1])
    return not before and (term.open_end or not after)


def spaced(character: str) -> bool:
    """A letter or digit of a script that puts spaces between words."""
    return character.isalnum() and character < FIRST_UNSPACED


def read_terms(path: Path) -> list[Term]:
    """The terms of one file. Raises InputError with the number of the line that is none."""
    terms, category = [], ""
    for number, raw in enumerate(read_text(path).splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if line.startswith("[") and line.endswith("]"):
            category = line[1:-1].strip()
            if category not in (*CATEGORIES, ALLOW):
                raise InputError(
                    f"{path}, line {number}: [{category}] is no category; there are {', '.join(CATEGORIES)} and {ALLOW}"
                )
        elif line:
            terms.append(_term(line, category, f"{path}, line {number}"))
    return terms


def _term(line: str, category: str, where: str) -> Term:
    words = searched(line.removesuffix("*"))
    if not category:
        raise InputError(f"{where}: {line!r} stands above the first [category]; say which one it belongs to")
    if not words:
        raise InputError(f"{where}: nothing is left of {line!r} once it is folded; write the term in letters")
    return Term(words, category, line.endswith("*"))
