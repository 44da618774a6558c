"""The process that renders and encodes for one model; `encoder.py` is the server's end of it.

    messages or texts, a limit in tokens  ->  {"ids", "count", "exact"}

A text that cannot fit the limit is not encoded: its count is then a lower bound, `exact` is false and `ids` is null, as
they are for a text that turns out too long.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from tutelage import bounded
from tutelage.errors import InputError
from tutelage.text.chat import Message, encode_answer, sealed_text
from tutelage.text.template import Tool
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.trial import trust

Encoded = dict[str, Any]


class Encoding:
    """The functions that the server may ask for."""

    tokenizer: Tokenizer

    def set_up(self, backend: str, settings: dict[str, Any], ends: Sequence[int]) -> None:
        """Make the tokenizer, and what it makes when it is first used."""
        trust(settings["chat_template"])  # this process has limits itself
        self.tokenizer = Tokenizer(BackendTokenizer.from_str(backend), settings, ends)
        self._within(0, "", self.tokenizer.reader.encode)

    def chat(self, messages: Sequence[Message], limit: int, prompt: bool = True, tools: Sequence[Tool] = ()) -> Encoded:
        """A conversation, with the generation prompt after it if `prompt`. tools: the functions that may be called."""
        text = sealed_text(self.tokenizer, messages, prompt, tools)
        return self._within(limit, text, self.tokenizer.reader.encode)

    def answers(self, conversations: Sequence[Sequence[Message]], limit: int, whole: bool) -> list[Encoded]:
        """Conversations that end with an answer, up to the end of its turn, or as a `whole`."""
        return [self.chat(turns, limit, False) if whole else self._answer(turns, limit) for turns in conversations]

    def _answer(self, messages: Sequence[Message], limit: int) -> Encoded:
        text = sealed_text(self.tokenizer, messages)
        return self._within(limit, text, lambda _: encode_answer(self.tokenizer, messages).ids)

    def texts(self, texts: Sequence[str], limit: int) -> list[Encoded]:
        """Texts between the tokens that the tokenizer adds, such as BOS."""
        return [self._within(limit, text, self.tokenizer.encode_text) for text in texts]

    def marked(self, text: str, limit: int, framed: bool) -> Encoded:
        """A text in which the text of a special token is that token; `framed`: between the tokens that are added."""
        return self._within(limit, text, lambda text: self.tokenizer.encode_marked(text, framed))

    def decoded(self, prompts: Sequence[Sequence[int]], special: bool = False) -> list[str]:
        """The texts of ids, with special tokens if `special`."""
        return [self.tokenizer.decode(ids, skip_special=not special) for ids in prompts]

    def fit(self, system: str, messages: Sequence[Message], hidden: Sequence[int], limit: int) -> dict[str, Any]:
        """The ids of the messages without those in `hidden` and without the oldest turns, so that they fit the limit.

        {"ids": null if even the last turn is too long, "dropped": how many turns were left out}
        """
        questions = [index for index, message in enumerate(messages) if message["role"] == "user"]
        head: list[Message] = [{"role": "system", "content": system}] if system else []
        unseen = set(hidden)

        def without(dropped: int) -> Encoded:
            start = questions[dropped] if dropped else 0
            visible = [message for i, message in enumerate(messages) if i >= start and i not in unseen]
            return self.chat([*head, *visible], limit)

        fitting = range(len(questions))
        dropped = bisect.bisect_left(fitting, True, key=lambda count: without(count)["ids"] is not None)
        return {"ids": without(dropped)["ids"] if dropped < len(questions) else None, "dropped": dropped}

    def _within(self, limit: int, text: str, encode: Callable[[str], list[int]]) -> Encoded:
        bounds = self.tokenizer.bounds
        least = bounds.least_tokens(text) if bounds else 0
        if least > limit:
            return {"ids": None, "count": least, "exact": False}
        ids = encode(text)
        return {"ids": ids if len(ids) <= limit else None, "count": len(ids), "exact": True}


def main() -> None:
    """What the process runs."""
    encoding = Encoding()
    jobs = {
        name: getattr(encoding, name) for name in ("set_up", "chat", "answers", "texts", "marked", "decoded", "fit")
    }
    bounded.answer_all(jobs, refusals=(InputError,))
