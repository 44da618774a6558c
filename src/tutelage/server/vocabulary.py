"""Compiles grammars for one tokenizer, and keeps them.

    Vocabulary(tokenizer, table, ends).compile(lark, schemas) -> Grammar

A grammar is written in llguidance's variant of Lark. Compiling releases the interpreter's lock and has limits of size.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from tutelage.errors import InputError
from tutelage.server.ending import ByteVocabulary, Endings
from tutelage.server.grammar_constraint import Grammar
from tutelage.server.tokens import Tokens
from tutelage.text.tokenizer import Tokenizer

CACHED, CACHED_BYTES = 128, 2 * 2**20  # compiled grammars per tokenizer, and the bytes of their texts
LONGEST = 128 * 1024  # bytes of a grammar's text
LIMITS = LLParserLimits(verbose_errors=False)


class Vocabulary:
    """A tokenizer as llguidance reads it, with its compiled grammars."""

    def __init__(self, tokenizer: Tokenizer, table: Sequence[bytes], ends: Sequence[int]):
        """table: the bytes of each token; ends: the ids that end a response."""
        self.tokens = Tokens(tokenizer, table, ends[0])
        self.bytes = ByteVocabulary({i: self.tokens.tokens[i] for i in self.tokens.special_token_ids}, ends, len(table))
        self._tokenizer = LLTokenizer(self.tokens, eos_token=list(ends))  # type: ignore[arg-type]  # has the fields
        self._byte_tokenizer = LLTokenizer(self.bytes, eos_token=list(ends), slices=[])  # type: ignore[arg-type]  # too
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, lark: str, schemas: Mapping[str, Mapping[str, Any]]) -> Grammar:
        """The grammar of these rules, in which @name is JSON that fits a schema. It is kept for the next time.

        Raises InputError with the library's reason if there is a fault in it.
        """
        grammars = [{"name": name, "json_schema": schema} for name, schema in schemas.items()]
        text = json.dumps({"grammars": [{"lark_grammar": lark}, *grammars]})
        if len(text) > LONGEST:
            raise InputError(f"the grammar has {len(text)} bytes; at most {LONGEST} are allowed")
        with self._lock:
            if known := self._compiled.get(text):
                self._compiled.move_to_end(text)
                return known
        matcher, in_bytes = _compiled(self._tokenizer, text), _compiled(self._byte_tokenizer, text)
        grammar = Grammar(text, self.tokens, matcher, Endings(self.bytes, in_bytes))
        with self._lock:
            self._compiled[text] = grammar
            while len(self._compiled) > CACHED or sum(map(len, self._compiled)) > CACHED_BYTES:
                self._compiled.popitem(last=False)
        return grammar


def _compiled(tokens: LLTokenizer, text: str) -> LLMatcher:
    """A matcher at the beginning of a response."""
    matcher = LLMatcher(tokens, text, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise InputError(" ".join(matcher.get_error().split()))
    return matcher
