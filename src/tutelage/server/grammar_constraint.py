"""A compiled grammar, and one response's place in it: the engine's `Constraint`.

    Grammar.begin() -> GrammarConstraint: fill(bits) -> a token is drawn -> take(token, left) -> ...

A response ends in time: if after a drawn token no known way to the end of the grammar would fit into what is left, the
first token of the shortest known way (`ending.py`) is taken in its place. So the end of a string, or of a list, comes
early instead of never. Ways are looked for only as often as the room that is left makes it necessary.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from llguidance import LLMatcher

from tutelage.engine.constraint import Bits
from tutelage.server.ending import Endings, tokenised
from tutelage.server.matcher import check
from tutelage.server.tokens import Tokens

SKIPPED = 3  # tokens of the known way that another token may have made superfluous
NEAR = 64  # with less room than this beyond the known way, a way is looked for after every token
WALKS, STEPS = 3, 32  # random responses of a rehearsal, and their tokens
BYTES_PER_TOKEN = 16  # a way with more bytes per token that is left is not looked for


@dataclass
class Grammar:
    """A compiled grammar. It may be used from any thread."""

    tokens: Tokens
    matcher: LLMatcher  # at the beginning of a response; copied, never advanced
    endings: Endings
    failed: bool = False  # whether a response could not follow it: its copies share a lexer, which may be full

    def begin(self) -> "GrammarConstraint":
        """The constraint of one response."""
        return GrammarConstraint(self)

    @cached_property
    def shortest(self) -> list[int] | None:
        """Tokens of a short response, close to the shortest that the grammar allows; None if none was found."""
        return self.tokenised(self.endings.shortest)

    def rehearse(self) -> None:
        """Follow the shortest response, and some random ones, as requests would.

        Raises InputError if the library cannot follow one of them. Afterwards it knows what it will need first.
        """
        chance = random.Random(0)
        for planned in (self.shortest or [], *[[]] * WALKS):
            matcher = self.matcher.deep_copy()
            for step in range(max(STEPS, len(planned))):
                mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
                check(matcher)
                if matcher.is_stopped():
                    break
                allowed = np.unpackbits(mask, bitorder="little").nonzero()[0]
                drawn = int(allowed[chance.randrange(len(allowed))])
                matcher.consume_token(planned[step] if step < len(planned) else drawn)
                check(matcher)

    def tokenised(self, way: list[int] | None) -> list[int] | None:
        """The tokens of a way to the end."""
        if way is None:
            return None
        parts = tokenised(way, self.endings.vocabulary)
        return [i for part in parts for i in ([part] if isinstance(part, int) else self.tokens.of_bytes(part))]


class GrammarConstraint:
    """One response's place in its grammar."""

    def __init__(self, grammar: Grammar):
        self.grammar = grammar
        self._matcher = grammar.matcher.deep_copy()
        self._shadow = grammar.endings.matcher.deep_copy()  # the same place in bytes, behind by `_behind`
        self._behind: list[int] = []
        self._text = b""
        self._way = grammar.shortest  # tokens that end the response from here; None if unknown
        self._hopeful = self._way is not None  # whether ways are looked for
        self.ended = False  # whether nothing may follow
        self._unchecked = 0  # tokens that may be taken before a way is looked for again

    def fill(self, bits: Bits) -> None:
        """Set the bits of the tokens that may come next. Raises InputError if the grammar cannot be followed."""
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        self._check()

    def take(self, token: int, left: int) -> int:
        """Advance by the drawn token, or by another if the response could not end in time after it."""
        self._advance(token)
        if self._unchecked or not self._hopeful:
            self._unchecked, self._way = max(0, self._unchecked - 1), None
        else:
            token = self._in_time(token, left)
        self._behind.append(token)
        self.ended = self._matcher.is_stopped()
        return token

    def _advance(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        self.grammar.failed |= self._matcher.is_error()
        check(self._matcher)

    def _in_time(self, token: int, left: int) -> int:
        """The drawn token. If no way after it would fit: the first of the way before it, or the end if that is here."""
        after, room = self._way_after(token, left), NEAR // 4
        if after is None or len(after) > left:
            self._matcher.rollback(1)
            before = self._find(left + 1) if self._way is None else self._way
            if before is not None and len(before) - 1 <= left:
                token, *after = before or [self.grammar.tokens.eos_token_id]
            self._advance(token)
        if after is not None and len(after) <= left:
            room = max(0, left - len(after) - NEAR) // 4
        self._way, self._unchecked = after, room
        return token

    def _way_after(self, token: int, left: int) -> list[int] | None:
        """A way to the end after this token, which the matcher has taken: the known one, if it still leads there."""
        if self._may_end():
            return []
        known = self._way or []
        rest = (known[first:] for first in range(min(len(known), SKIPPED + 1)))
        return next((way for way in rest if self._leads_to_the_end(way)), None) or self._find(left, token)

    def _may_end(self) -> bool:
        return self._matcher.is_stopped() or self._matcher.is_accepting()

    def _leads_to_the_end(self, way: list[int]) -> bool:
        end = self.grammar.tokens.eos_token_id
        return self._matcher.validate_tokens([*way, end]) == len(way) + 1

    def _find(self, left: int, *last: int) -> list[int] | None:
        """Look for a way of about `left` tokens or fewer, after the tokens taken so far and `last`."""
        endings = self.grammar.endings
        self._text += self._follow(self._shadow, self._behind)
        self._behind = []
        shadow = self._shadow.deep_copy()
        text = self._text + self._follow(shadow, last)
        return self.grammar.tokenised(endings.find(shadow, text, BYTES_PER_TOKEN * left))

    def _follow(self, shadow: LLMatcher, taken: Sequence[int]) -> bytes:
        """Advance a matcher of bytes by tokens. Returns their text."""
        tokens, vocabulary = self.grammar.tokens, self.grammar.endings.vocabulary
        texts = [tokens.bytes_of(token) for token in taken]
        for token, text in zip(taken, texts, strict=True):
            shadow.consume_tokens(vocabulary.ids(text) if text else [token])
        return b"".join(texts)
