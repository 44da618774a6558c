"""Compiles grammars for one tokenizer, and keeps them.

    Vocabulary(tokenizer, table, ends).compile(rules, schemas) -> Grammar

A grammar is written in llguidance's variant of Lark. It is first tried in a process with limits of time and memory
(`grammar_process.py`). Compiling it here releases the interpreter's lock.
"""

import asyncio
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from llguidance import LLTokenizer
from starlette.concurrency import run_in_threadpool

from tutelage.bounded import Child, Overrun, Refused
from tutelage.errors import InputError
from tutelage.server.ending import ByteVocabulary, Endings, Learned
from tutelage.server.grammar_constraint import Grammar
from tutelage.server.json_schema import prepared
from tutelage.server.matcher import compiled
from tutelage.server.tokens import Tokens
from tutelage.text.tokenizer import Tokenizer
from tutelage.web.errors import ApiError

CACHED, CACHED_BYTES = 64, 2**20  # compiled grammars per tokenizer, and the bytes of their texts
LONGEST = 128 * 1024  # bytes of a grammar's text
SECONDS, MEMORY = 2.0, 512  # of computing and MiB for a trial
WAITING = 20.0  # seconds that a request waits for its turn
# One space may follow a comma or a colon, and no other white space is allowed: a small model could write it forever.
JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

Schemas = Mapping[str, Mapping[str, Any]]


T = TypeVar("T")


class Busy(Exception):
    """Another thread compiles a grammar; `until` is done when it has."""

    def __init__(self, until: "Future[None]"):
        super().__init__("a grammar is being compiled")
        self.until = until


class Vocabulary:
    """A tokenizer as llguidance reads it, with its compiled grammars. Safe to use from all threads."""

    def __init__(self, tokenizer: Tokenizer, table: Sequence[bytes], ends: Sequence[int]):
        """table: the bytes of each token; ends: the ids that end a response."""
        self.tokens = Tokens(tokenizer, table, ends[0])
        self.tokens("{")  # the tokenizer makes what it needs, which may take a second
        names = {i: self.tokens.tokens[i] for i in self.tokens.special_token_ids}
        self.bytes = ByteVocabulary(names, ends, len(table))
        self._tokenizer = LLTokenizer(self.tokens, eos_token=list(ends))  # type: ignore[arg-type]  # has the fields
        self._byte_tokenizer = LLTokenizer(self.bytes, eos_token=list(ends), slices=[])  # type: ignore[arg-type]  # too
        control = [(i, name.decode()) for i, name in names.items()]
        set_up = {"control": control, "ends": list(ends), "size": len(table)}
        self._trial = Child("tutelage.server.grammar_process", memory=MEMORY, idle=60.0, set_up=lambda: set_up)
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()
        self._refusals: OrderedDict[bytes, str] = OrderedDict()  # reasons, by the hash of a grammar's text
        self._lock = threading.Lock()
        self._running: Future[None] | None = None  # done when the grammar that is being compiled is

    def compile(self, rules: str, schemas: Schemas) -> Grammar:
        """The grammar of these rules, in which @name is JSON that fits a schema. It is kept for the next time.

        Raises InputError, naming the keyword of a schema that answers could not be held to, and Busy while another
        thread compiles a grammar.
        """
        text = json.dumps([rules, schemas])
        if len(text) > LONGEST:
            raise InputError(f"it has {len(text):,} characters; at most {LONGEST:,} are allowed")
        if known := self._known(text):
            return known
        with self._in_turn():
            return self._known(text) or self._keep(text, self._new_or_refused(text, rules, schemas))

    async def when_free(self, made: Callable[[], T]) -> T:
        """The result of a function that compiles grammars, called in a thread. While it waits it occupies none.

        Raises ApiError after WAITING seconds.
        """
        end = time.monotonic() + WAITING
        while time.monotonic() < end:
            try:
                return await run_in_threadpool(made)
            except Busy as busy:
                await asyncio.wait({asyncio.wrap_future(busy.until)}, timeout=WAITING)
        message = "Too many new schemas are waiting. Try again soon."
        raise ApiError(503, message, code="engine_overloaded", headers={"retry-after": "1"})

    def close(self) -> None:
        """End the process that tries grammars."""
        self._trial.close()

    def _known(self, text: str) -> Grammar | None:
        with self._lock:
            known = self._compiled.pop(text, None)
            if known is None or known.failed:
                return None
            self._compiled[text] = known  # at the end
            return known

    def _keep(self, text: str, grammar: Grammar) -> Grammar:
        with self._lock:
            self._compiled[text] = grammar
            while len(self._compiled) > CACHED or sum(map(len, self._compiled)) > CACHED_BYTES:
                self._compiled.popitem(last=False)
        return grammar

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One grammar at a time is compiled."""
        with self._lock:
            if self._running:
                raise Busy(self._running)
            self._running = running = Future[None]()
        try:
            yield
        finally:
            with self._lock:
                self._running = None
            running.set_result(None)

    def _new_or_refused(self, text: str, rules: str, schemas: Schemas) -> Grammar:
        """A new grammar. Refusals are kept, too, so that nobody has one worked out again and again."""
        key = hashlib.sha256(text.encode()).digest()
        if reason := self._refusals.get(key):
            raise InputError(reason)
        try:
            return self._new(rules, schemas)
        except InputError as error:
            self._refusals[key] = str(error)
            if len(self._refusals) > CACHED:
                self._refusals.popitem(last=False)
            raise

    def _new(self, rules: str, schemas: Schemas) -> Grammar:
        ready = [{"name": name, "json_schema": _ready(schema)} for name, schema in schemas.items()]
        text = json.dumps({"grammars": [{"lark_grammar": rules}, *ready]})
        if len(text) > LONGEST:
            raise InputError(f"it has {len(text):,} characters when it is reworded; at most {LONGEST:,} are allowed")
        learned = self._tried(text)
        matcher, in_bytes = compiled(self._tokenizer, text), compiled(self._byte_tokenizer, text)
        grammar = Grammar(self.tokens, matcher, Endings(self.bytes, in_bytes, learned))
        grammar.rehearse()
        return grammar

    def _tried(self, text: str) -> Learned:
        """Try a grammar where it can do no harm."""
        try:
            return Learned.of_json(self._trial.ask("learn", SECONDS, text=text))
        except Refused as error:
            raise InputError(str(error)) from None
        except Overrun as error:
            closed = str(error) == "closed"
            reason = "the model is no longer served" if closed else f"it needs too much {error}; make it smaller"
            raise InputError(reason) from None


def _ready(schema: Mapping[str, Any]) -> dict[str, Any]:
    return prepared(schema) | {"x-guidance": JSON_OPTIONS}
