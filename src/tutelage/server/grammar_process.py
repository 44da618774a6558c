"""The process that tries grammars; `vocabulary.py` is the server's end of it.

    text of a grammar  ->  how its responses end soon (`ending.py`), as JSON

A caller's schema is compiled here first, and its shortest response is followed. If it needs too much time or memory, or
meets a fault of the library, this process ends and not the server. Threads have less stack here than in the server, so
what is nested too deeply for the server is refused.
"""

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llguidance import LLTokenizer

from tutelage import bounded
from tutelage.errors import InputError
from tutelage.server.ending import ByteVocabulary, Endings
from tutelage.server.matcher import compiled

STACK = 2**21  # bytes
HINTS = 200  # characters of patterns that are read for hints


class Trial:
    """The functions that the server may ask for."""

    def set_up(self, control: Sequence[tuple[int, str]], ends: Sequence[int], size: int) -> None:
        """The arguments are those of `ByteVocabulary`."""
        self.vocabulary = ByteVocabulary({i: name.encode() for i, name in control}, ends, size)
        self.tokenizer = LLTokenizer(self.vocabulary, eos_token=list(ends), slices=[])  # type: ignore[arg-type]
        threading.stack_size(STACK)
        self._thread = ThreadPoolExecutor(1)

    def learn(self, text: str) -> dict[str, Any]:
        """Compile a grammar and learn its endings. Raises InputError if there is a fault in it."""
        return self._thread.submit(self._learn, text).result()

    def _learn(self, text: str) -> dict[str, Any]:
        return Endings(self.vocabulary, compiled(self.tokenizer, text), hints=hints_of(text)).learn().as_json()


def hints_of(text: str) -> bytes:
    """The letters, digits and common marks of the patterns in a grammar, in order."""
    patterns = re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', text)
    return "".join(re.findall(r"[A-Za-z0-9.\-_/: @,#+]", "".join(patterns)[:HINTS])).encode()


def main() -> None:
    """Answer the server's questions."""
    trial = Trial()
    bounded.answer_all({"set_up": trial.set_up, "learn": trial.learn}, refusals=(InputError,))
