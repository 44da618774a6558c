"""A tokenizer as the library llguidance reads it: compiles grammars, and follows them token by token.

    Vocabulary(tokenizer, table, ends).compile(lark) -> Grammar;  Grammar.begin() -> GrammarConstraint (engine)

A grammar is written in llguidance's variant of Lark. Compiling releases the interpreter's lock and has limits of size.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from tutelage.engine.constraint import Bits
from tutelage.errors import InputError
from tutelage.text.tokenizer import Tokenizer

CACHED, CACHED_BYTES = 128, 8 * 2**20  # compiled grammars per tokenizer, and the bytes of their texts
LONGEST = 256 * 1024  # bytes of a grammar's text
LIMITS = LLParserLimits(verbose_errors=False)


class Tokens:
    """The object that llguidance takes for a tokenizer; it keeps it, so no reference leads back to a `Vocabulary`."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, table: Sequence[bytes], end: int):
        """table: the bytes of each token."""
        names, control = tokenizer.tokens(), tokenizer.control_ids
        self._tokenizer, self._table = tokenizer, table
        self.tokens = [names[i].encode() if i in control else token for i, token in enumerate(table)]
        self.special_token_ids = [i for i in range(len(table)) if i in control]
        self.eos_token_id = end

    def __call__(self, text: str) -> list[int]:
        """Ids of a text in the middle of a text: as the tokenizer splits it, unless that changes the text.

        SentencePiece puts a space before a text, and normalizers change characters. Then each token is the longest.
        """
        ids = self._tokenizer.encode(text)
        if b"".join(self._table[i] for i in ids) == text.encode():
            return ids
        return self._longest(text.encode())

    def _longest(self, rest: bytes) -> list[int]:
        ids = []
        while rest:
            size = next(n for n in range(min(len(rest), self._most), 0, -1) if rest[:n] in self._by_bytes)
            ids.append(self._by_bytes[rest[:size]])
            rest = rest[size:]
        return ids

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {token: i for i, token in enumerate(self._table) if token and i not in special}

    @cached_property
    def _most(self) -> int:
        return max(map(len, self._by_bytes))


class Vocabulary:
    """A tokenizer as llguidance reads it, with its compiled grammars."""

    def __init__(self, tokenizer: Tokenizer, table: Sequence[bytes], ends: Sequence[int]):
        """table: the bytes of each token; ends: the ids that end a response."""
        tokens: Any = Tokens(tokenizer, table, ends[0])
        self._tokenizer = LLTokenizer(tokens, eos_token=list(dict.fromkeys(ends)))
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, lark: str) -> "Grammar":
        """The grammar of this text, from the cache if it was compiled before. Raises InputError if it has a fault."""
        if len(lark) > LONGEST:
            raise InputError(f"the grammar has {len(lark)} characters; at most {LONGEST} are allowed")
        with self._lock:
            if known := self._compiled.get(lark):
                self._compiled.move_to_end(lark)
                return known
        grammar = Grammar(lark, compiled(self._tokenizer, lark))
        with self._lock:
            self._compiled[lark] = grammar
            while len(self._compiled) > CACHED or sum(map(len, self._compiled)) > CACHED_BYTES:
                self._compiled.popitem(last=False)
        return grammar


def compiled(tokens: LLTokenizer, lark: str) -> LLMatcher:
    """A matcher at the beginning of a text. Raises InputError with the library's reason."""
    matcher = LLMatcher(tokens, lark, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise InputError(" ".join(matcher.get_error().split()))
    return matcher


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar. It may be used from any thread."""

    lark: str
    matcher: LLMatcher  # at the beginning of a text; never advanced

    def begin(self) -> "GrammarConstraint":
        """The constraint of one response."""
        return GrammarConstraint(self.matcher.deep_copy())


class GrammarConstraint:
    """One response's place in its grammar: an engine `Constraint`."""

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def fill(self, bits: Bits) -> None:
        """Set the bits of the tokens that may come next. Raises ValueError if the grammar cannot be followed."""
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        self._check()

    def take(self, token: int, left: int) -> int:
        self._matcher.consume_token(token)
        self._check()
        return token

    @property
    def ended(self) -> bool:
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(" ".join(self._matcher.get_error().split()))
