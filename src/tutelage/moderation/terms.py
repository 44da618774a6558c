"""Term lists, and the search for their terms in a text.

    [violence]           one of OpenAI's categories, then one term per line; # begins a comment
    blow up the school   found as whole words: "ass" is not found in "class"
    behead*              also found at the beginning of a longer word
    砍死你                found anywhere, in scripts written without spaces
    [allow]
    dick van dyke        a term inside an allowed phrase does not count

Texts and terms are folded before the search: compatibility forms, case, traditional characters, invisible characters
and runs of spaces. So full-width letters, capitals, 砍死妳 and zero-width joiners hide nothing. In terms of three or
more Chinese or Japanese characters, spaces and punctuation between them are ignored as well (砍 死，你). Not in shorter
terms: two characters often meet by chance around a comma. All terms are found in one pass (Aho & Corasick 1975).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from ahocorasick_rs import AhoCorasick
from opencc import OpenCC

from tutelage.data.jsonl import read_text
from tutelage.errors import InputError

CATEGORIES = tuple(
    "harassment harassment/threatening hate hate/threatening illicit illicit/violent self-harm self-harm/intent "
    "self-harm/instructions sexual sexual/minors violence violence/graphic".split()
)
ALLOW = "allow"
BUILT_IN = tuple(sorted((Path(__file__).parent / "terms").glob("*.txt")))
FIRST_UNSPACED = "\u2e80"  # from the CJK radicals on, scripts are mostly written without spaces between words
_HAN_OR_KANA = r"[^\W\0-\u2e7f\ua4d0-\U0001ffff]"  # not Korean, which puts spaces between words
_APART = re.compile(rf"(?<={_HAN_OR_KANA})[\W_]+(?={_HAN_OR_KANA})")


def searched(text: str) -> str:
    """The form in which most terms are searched: folded, with only letters between Chinese or Japanese characters."""
    return _APART.sub("", fold(text))


def is_short(words: str) -> bool:
    """Whether a term has one or two Chinese or Japanese characters. Such terms match only without gaps."""
    return len(words) <= 2 and min(words) >= FIRST_UNSPACED


def fold(text: str) -> str:
    """Normalise a text: NFKC, casefold, simplified characters, no invisible characters, single spaces."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if not folded.isascii():
        folded = "".join(c for c in folded if not invisible(c)).translate(simplified())
    return " ".join(folded.split())


@cache
def simplified() -> dict[int, str]:
    """OpenCC's simplified form of every traditional character. Only one-to-one forms, so that lengths stay the same."""
    convert = OpenCC("t2s").convert
    forms = {point: convert(chr(point)) for point in range(0x3400, 0xA000)}
    return {point: form for point, form in forms.items() if len(form) == 1 and form != chr(point)} | {ord("妳"): "你"}


def invisible(character: str) -> bool:
    """Whether a reader cannot see it: zero-width characters, direction marks, soft hyphens, variation selectors."""
    return unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"


@dataclass(frozen=True)
class Term:
    """One line of a term list."""

    words: str  # in the form that is searched
    category: str  # one of CATEGORIES, or "allow"
    open_end: bool  # written with a final *: also matches the beginning of a longer word


class TermList:
    """A set of terms, searched together."""

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
        """The terms of all these files. Raises InputError that names an invalid line."""
        return cls(term for path in paths for term in read_terms(path))

    @cached_property
    def beginnings(self) -> frozenset[str]:
        """Every prefix of every term, and the whole term: the next letter may turn it into another word."""
        return frozenset(term.words[:end] for term in self.terms for end in range(1, len(term.words) + 1))

    def categories(self, text: str, begin: int = 0, end: int | None = None) -> set[str]:
        """The categories of the terms found in the text that begin in text[begin:end]."""
        return {name for form, search in self._searches for name in search.categories(text, form, begin, end)}


class Search:
    """The search for terms that share one form of the text, with one automaton."""

    def __init__(self, terms: list[Term]):
        self.terms = terms
        self._automaton = AhoCorasick([term.words for term in terms])

    def categories(self, text: str, form: Callable[[str], str], begin: int, end: int | None) -> set[str]:
        """The categories of the terms found in form(text) that begin in text[begin:end], outside allowed phrases."""
        whole = form(text)
        low, high = place(text, begin, form), len(whole) if end is None else place(text, end, form)
        matches = [(start, stop, self.terms[term]) for term, start, stop in self._matches(whole)]
        matches = [match for match in matches if whole_words(whole, *match)]
        allowed = [(start, stop) for start, stop, term in matches if term.category == ALLOW]
        return {
            term.category
            for start, stop, term in matches
            if low <= start < high and term.category != ALLOW and not any(s <= start and stop <= e for s, e in allowed)
        }

    def _matches(self, whole: str) -> list[tuple[int, int, int]]:
        return self._automaton.find_matches_as_indexes(whole, overlapping=True) if self.terms else []


def place(text: str, index: int, form: Callable[[str], str]) -> int:
    """The earliest position in form(text) of the character text[index]; folding may join it with the one after it."""
    return len(form(text[:index] + "一")) - 1


def whole_words(text: str, start: int, end: int, term: Term) -> bool:
    """Whether a match at text[start:end] covers whole words. With `open_end` the last word may go on."""
    before = start > 0 and spaced(text[start - 1]) and spaced(text[start])
    after = end < len(text) and spaced(text[end]) and spaced(text[end - 1])
    return not before and (term.open_end or not after)


def spaced(character: str) -> bool:
    """Whether it is a letter or digit of a script that puts spaces between words."""
    return character.isalnum() and character < FIRST_UNSPACED


def read_terms(path: Path) -> list[Term]:
    """The terms of one file. Raises InputError that names an invalid line."""
    terms, category = [], ""
    for number, raw in enumerate(read_text(path).splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if line.startswith("[") and line.endswith("]"):
            category = line[1:-1].strip()
            if category not in (*CATEGORIES, ALLOW):
                known = ", ".join((*CATEGORIES, ALLOW))
                raise InputError(f"{path}, line {number}: [{category}] is not a category; use one of {known}")
        elif line:
            terms.append(_term(line, category, f"{path}, line {number}"))
    return terms


def _term(line: str, category: str, where: str) -> Term:
    words = searched(line.removesuffix("*"))
    if not category:
        raise InputError(f"{where}: {line!r} comes before the first [category]; put it under one")
    if not words:
        raise InputError(f"{where}: nothing is left of {line!r} after normalisation; write the term in letters")
    return Term(words, category, line.endswith("*"))
