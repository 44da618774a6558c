"""A short way to the end of a grammar, so that a response can be complete when its limit is near.

    Endings(vocabulary, matcher).learn() -> Learned;  Endings(vocabulary, matcher, learned).find(matcher, text) -> ids

The way is found byte by byte with a matcher of its own, whose vocabulary is the 256 bytes and the control tokens. At
each byte the likeliest to end soon is taken: a closing mark, a comma, then what could not stand at the byte before, as
the @ of an address. For each grammar the choices that lead to longer ways, or nowhere as in a recursive schema, are
replaced at the beginning.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, product
from typing import Any

from llguidance import LLMatcher

CLOSING = b'}]",:'
SHORT = b"0123456789ntf"  # then come other characters, and after them those that open something new
LAST = b"[{\\ \t\r\n"
CONTEXT = 8  # bytes before a choice that tell it from other choices
OPEN_TEXT = 40  # more different bytes than this: the inside of a string
FEW = 12  # letters that are all tried
COMMON = b".-_/: @,"  # marks that are tried within a text
ROUNDS = 128  # a choice that is met more often on one way leads nowhere
REPEATED = 2  # steps in a row after which the same bytes may come: then a way out is looked for,
TRIES, PIECE, ALPHABET = 2000, 12, 8  # among so many texts, of at most 12 bytes, of 8 different ones
LONGEST = 4096  # bytes of a way
LATE = 300  # bytes at the end of the shortest response that are tried as a way
STEPS = 5000  # choices tried per grammar

NONE = bytes(32)
INVERTED = bytes(255 - value for value in range(256))
Choice = tuple[bytes, bytes]  # the bytes before it, and the candidates


class ByteVocabulary:
    """The control tokens of a vocabulary under their own ids, and after them the 256 bytes."""

    is_tokenizer_wrapper = True  # what llguidance asks of a tokenizer
    bos_token_id = None

    def __init__(self, control: Mapping[int, bytes], ends: Sequence[int], size: int):
        """control: names of the control tokens; ends: the ids that end a response; size: of the whole vocabulary."""
        self.first = -(-size // 32) * 32  # id of byte 0, at the beginning of a mask's word
        single = [bytes([value]) for value in range(256)]
        self.tokens = [*(control.get(i, b"") for i in range(self.first)), *single]
        self.special_token_ids, self.eos_token_id = sorted(control), ends[0]

    def __call__(self, text: str) -> list[int]:
        return self.ids(text.encode())

    def ids(self, text: bytes) -> list[int]:
        return [self.first + value for value in text]


@dataclass(frozen=True)
class Learned:
    """What was learned of a grammar. The process that learns it passes it on as JSON."""

    shortest: list[int] | None  # the shortest way from the beginning that was found
    choices: dict[Choice, int]  # which candidate is taken, where it is not the first

    def as_json(self) -> dict[str, Any]:
        texts = [(tail.decode("latin-1"), tried.decode("latin-1"), at) for (tail, tried), at in self.choices.items()]
        return {"shortest": self.shortest, "choices": texts}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> "Learned":
        return cls(
            found["shortest"],
            {(tail.encode("latin-1"), tried.encode("latin-1")): at for tail, tried, at in found["choices"]},
        )


NOTHING = Learned(None, {})


class Endings:
    """Finds ways to the end of one grammar."""

    def __init__(self, vocabulary: ByteVocabulary, matcher: LLMatcher, learned: Learned = NOTHING, hints: bytes = b""):
        """matcher: at the beginning of a response, with this vocabulary; hints: bytes that its patterns may ask for."""
        self.vocabulary, self.matcher, self._hints = vocabulary, matcher, hints
        self.shortest, self._taken, self._tries = learned.shortest, dict(learned.choices), 3 * TRIES
        # The bytes of the shortest way in the order of their first appearance: the next of them leads on.
        self._order = bytes(dict.fromkeys(i - vocabulary.first for i in self.shortest or () if i >= vocabulary.first))

    def find(self, matcher: LLMatcher, text: bytes, longest: int) -> list[int] | None:
        """Up to `longest` ids of this vocabulary that end a response after `text`; None if no such way is found."""
        whole, end = self.shortest or [], self.vocabulary.eos_token_id
        for start in range(len(whole) - 1, max(-1, len(whole) - LATE), -1):  # often the end of the shortest response
            if matcher.validate_tokens([*whole[start:], end]) == len(whole) - start + 1:
                return whole[start:]
        return self._way(matcher, text, min(longest, LONGEST))[0]

    def learn(self) -> Learned:
        """Look for the shortest way from the beginning, and try other candidates at each of its choices."""
        best, met = self._way(self.matcher, b"", LONGEST)
        attempts, spent = _attempts(met), 0
        if best is None:  # a way that leads nowhere repeats the choice that is wrong
            attempts.sort(key=lambda attempt: (attempt[1], -met[attempt[0]]))
        for choice, candidate in attempts:  # grows while it is read
            kept = self._taken.get(choice, 0)
            self._taken[choice] = candidate
            way, met = self._way(self.matcher, b"", LONGEST if best is None else len(best) - 1)
            spent += sum(met.values()) + 1
            if way is None:
                self._taken[choice] = kept
            else:
                known, best = {choice for choice, _ in attempts}, way
                attempts += [attempt for attempt in _attempts(met) if attempt[0] not in known]
            if spent > STEPS:
                break
        return Learned(best, {choice: at for choice, at in self._taken.items() if at})

    def _way(self, matcher: LLMatcher, text: bytes, longest: int) -> tuple[list[int] | None, Counter[Choice]]:
        """The way that the present choices lead, if it has at most `longest` ids, and how often each was met."""
        matcher, way, tail, met = matcher.deep_copy(), [], text[-CONTEXT:], Counter[Choice]()
        before, same = b"", 0
        order, fresh = self._order, NONE  # `fresh`: what could not come at the last byte that was not forced
        while not (matcher.is_accepting() or matcher.is_stopped()):
            ids = matcher.compute_ff_tokens()
            if not ids:
                ids, allowed = self._allowed(matcher)
                choice = tail, ranked(allowed, fresh, order)
                order, fresh = b"", allowed.translate(INVERTED)
                ids = ids or self.vocabulary.ids(choice[1][(at := self._taken.get(choice, 0)) : at + 1])
                met[choice] += 1
                same = same + 1 if allowed == before else 0
                if same == REPEATED and self._hints:
                    ids = self._way_out(matcher, allowed) or ids
                before = allowed
                if met[choice] > ROUNDS:
                    return None, met
            way += ids
            if not ids or len(way) > longest or not matcher.consume_tokens(ids):
                return None, met
            tail = (tail + bytes(max(0, i - self.vocabulary.first) for i in ids))[-CONTEXT:]
        return (None if matcher.is_error() else way), met

    def _way_out(self, matcher: LLMatcher, allowed: bytes) -> list[int]:
        """A few bytes after which something may come that may not come now; none if they are not found.

        Pieces of the hints are tried, then other short texts.
        """
        sizes, hints = range(1, PIECE + 1), self.vocabulary.ids(self._hints)
        alphabet = list(dict.fromkeys([*hints, *self.vocabulary.ids(ranked(allowed, NONE, b""))]))[:ALPHABET]
        pieces = (hints[at : at + size] for size in sizes for at in range(len(hints) - size + 1))
        others = (list(text) for size in sizes for text in product(alphabet, repeat=size))
        for text in islice(chain(pieces, others), TRIES):
            self._tries -= 1
            if self._tries < 0:
                break
            if matcher.validate_tokens(text) == len(text):
                matcher.consume_tokens(text)
                following = self._allowed(matcher)[1]
                matcher.rollback(len(text))
                if any(after & ~now for after, now in zip(following, allowed, strict=True)):
                    return text
        return []

    def _allowed(self, matcher: LLMatcher) -> tuple[list[int], bytes]:
        """What may come next: a control token if one may, for it leads out of free text, and a mask of bytes."""
        mask = matcher.compute_bitmask()
        control, single = mask[: self.vocabulary.first // 8], mask[self.vocabulary.first // 8 :]
        return bits_of(control)[:1] if control.count(0) < len(control) else [], single


def bits_of(mask: bytes) -> list[int]:
    """The numbers whose bits are set, in order."""
    return [8 * at + bit for at, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1]


def _attempts(met: Iterable[Choice]) -> list[tuple[Choice, int]]:
    """The other candidates of choices."""
    return [(choice, at) for choice in met if not _obvious(choice) for at in range(1, len(choice[1]))]


def _obvious(choice: Choice) -> bool:
    """Whether there is but one candidate, or one that closes a list, an object or a string."""
    tail, candidates = choice
    if len(candidates) < 2 or candidates[0] in b"}]":
        return True
    return candidates[:1] == b'"' and tail.rstrip()[-1:] not in (b":", b",", b"[", b"")


@lru_cache(4096)
def ranked(mask: bytes, fresh: bytes, order: bytes) -> bytes:
    """Those of the bytes in a mask that are worth trying, the best first. Of many letters or digits only some are.

    Preferred are those in `order`, and those in the mask `fresh`, which could not come before.
    """
    allowed = bits_of(mask)
    inside = len(allowed) > OPEN_TEXT
    if inside and b'"'[0] in allowed:
        return b'"'
    letters = [value for value in allowed if chr(value).isalpha() or value >= 0x80]
    digits = [value for value in allowed if chr(value).isdigit()]
    marks = [value for value in allowed if value not in letters and value not in digits]
    new = set(bits_of(fresh)).union(order).intersection(marks if inside else allowed)
    new = set() if inside and len(new) > FEW else new
    some = new or set(COMMON).intersection(marks) if inside else marks
    few = [*(letters[:1] if len(letters) > FEW else letters), *digits[:1], *digits[-1:], *some]

    def rank(value: int) -> tuple[bool, bool, int, bool, tuple[int, int]]:
        place = order.find(value) if value in order else len(order)
        common = inside and value in COMMON
        return inside or value not in CLOSING, value not in new, place, common, _length_rank(value)

    best: list[int] = sorted(set(few), key=rank)
    return bytes(best)


def _length_rank(value: int) -> tuple[int, int]:
    """Sorts bytes by the length of what they begin."""
    for rank, group in enumerate((CLOSING, SHORT)):
        if value in group:
            return rank, group.index(value)
    return (3 if value in LAST else 2), value


def tokenised(way: Sequence[int], vocabulary: ByteVocabulary) -> Iterator[int | bytes]:
    """The way as control tokens and the texts between them."""
    text = b""
    for i in way:
        if i >= vocabulary.first:
            text += bytes([i - vocabulary.first])
            continue
        if text:
            yield text
        yield i
        text = b""
    if text:
        yield text
