"""A short way to the end of a grammar, so that a response can be complete when its limit is near.

    Endings(bytes, rules).find(matcher) -> tokens after which the response may end

The way is found byte by byte with a matcher of its own, whose vocabulary is the 256 bytes and the control tokens. At
each byte the likeliest to end soon is taken: a closing mark, a comma, then what could not stand at the byte before, as
the @ of an address. For each grammar the choices that lead to longer ways, or nowhere as in a recursive schema, are
replaced at the beginning.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from llguidance import LLMatcher

CLOSING = b'}]",:'
SHORT = b"0123456789ntf"  # then come other characters, and after them those that open something new
LAST = b"[{-\\ \t\r\n"
CONTEXT = 8  # bytes before a choice that tell it from other choices
OPEN_TEXT = 40  # more different bytes than this: the inside of a string
FEW = 12  # letters that are all tried
ROUNDS = 256  # a choice that is met more often on one way leads nowhere
LONGEST = 4096  # bytes of a way
STEPS = 3000  # choices tried per grammar

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


class Endings:
    """Finds ways to the end of one grammar."""

    def __init__(self, vocabulary: ByteVocabulary, matcher: LLMatcher):
        """matcher: at the beginning of a text, with this vocabulary."""
        self.vocabulary, self.matcher = vocabulary, matcher
        self._taken: dict[Choice, int] = {}  # which candidate is taken, if not the first
        self._mask = np.zeros(len(vocabulary.tokens) // 32, dtype=np.int32)
        self.shortest = self._learned()

    def find(self, matcher: LLMatcher, text: bytes) -> list[int] | None:
        """Ids of this vocabulary that end a response after `text`; None if no short way is found."""
        return self._way(matcher, text, LONGEST)[0]

    def _learned(self) -> list[int] | None:
        """The shortest way from the beginning, after other candidates were tried at each of its choices."""
        best, met = self._way(self.matcher, b"", LONGEST)
        choices, spent = list(met), len(best or ())
        for choice in choices:  # grows while it is read
            kept = 0
            for candidate in range(1, len(choice[1]) if spent < STEPS and not _obvious(choice) else 1):
                self._taken[choice] = candidate
                way, met = self._way(self.matcher, b"", LONGEST if best is None else len(best) - 1)
                spent += sum(met.values()) + 1
                if way is not None:
                    best, kept = way, candidate
                    choices += [new for new in met if new not in choices]
            self._taken[choice] = kept
        return best

    def _way(self, matcher: LLMatcher, text: bytes, longest: int) -> tuple[list[int] | None, Counter[Choice]]:
        """The way that the present choices lead, if it has at most `longest` ids, and how often each was met."""
        matcher, way, tail, met = matcher.deep_copy(), [], text[-CONTEXT:], Counter[Choice]()
        before = b""  # what could stand at the last byte that was not forced
        while not (matcher.is_accepting() or matcher.is_stopped()):
            ids = matcher.compute_ff_tokens()
            if not ids:
                ids, allowed = self._allowed(matcher)
                choice, before = (tail, ranked(allowed, before)), allowed
                ids = ids or self.vocabulary.ids(choice[1][(at := self._taken.get(choice, 0)) : at + 1])
                met[choice] += 1
                if met[choice] > ROUNDS:
                    return None, met
            way += ids
            if not ids or len(way) > longest or not matcher.consume_tokens(ids):
                return None, met
            tail = (tail + bytes(max(0, i - self.vocabulary.first) for i in ids))[-CONTEXT:]
        return (None if matcher.is_error() else way), met

    def _allowed(self, matcher: LLMatcher) -> tuple[list[int], bytes]:
        """What may come next: one control token if any may, which leads out of free text, and all bytes."""
        matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        split = self.vocabulary.first // 32
        control, single = (_set_bits(part) for part in (self._mask[:split], self._mask[split:]))
        return control[:1], bytes(single)


def _set_bits(words: np.ndarray) -> list[int]:
    return np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()[0].tolist() if words.any() else []


def _obvious(choice: Choice) -> bool:
    """Whether there is but one candidate, or one that closes a list, an object or a string."""
    tail, candidates = choice
    if len(candidates) < 2 or candidates[0] in b"}]":
        return True
    return candidates[:1] == b'"' and tail.rstrip()[-1:] not in (b":", b",", b"[", b"")


def ranked(allowed: bytes, before: bytes) -> bytes:
    """Those of the allowed bytes that are worth trying, the best first. Of many letters or digits only some are."""
    inside = len(allowed) > OPEN_TEXT
    if inside and b'"'[0] in allowed:
        return b'"'
    new = set(allowed).difference(before) if len(before) > OPEN_TEXT or not inside else set()
    letters = [value for value in allowed if chr(value).isalpha() or value >= 0x80]
    digits = [value for value in allowed if chr(value).isdigit()]
    marks = [value for value in allowed if value not in letters and value not in digits]
    few = {
        *(letters[:1] if len(letters) > FEW else letters),
        *(digits[:1] + digits[-1:]),
        *(new.intersection(marks) if inside else marks),
    }
    return bytes(sorted(few, key=lambda value: (inside or value not in CLOSING, value not in new, _rank(value))))


def _rank(value: int) -> tuple[int, int]:
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
