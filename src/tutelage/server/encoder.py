"""The server's end of the process that renders and encodes for one model (`encoding_process.py`).

    await encoder.chat(owner, messages, limit)  ->  Encoded: the ids, or the number of tokens if they exceed the limit

Texts of any length, and templates that nobody vouches for, are read in that process. So they stall neither the engine
nor other callers. What exceeds its time or memory ends the process, and the next question starts another one.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tutelage.bounded import Child, Failed, Overrun, Refused
from tutelage.errors import InputError
from tutelage.server.worker import SECONDS, Worker, all_of, in_pieces
from tutelage.text.template import Message, Tool
from tutelage.text.tokenizer import Tokenizer

MEMORY = 1024  # MiB that one conversation may need
NICE = 5  # the engine goes first
OVERRUN = {
    "time": "chat template: this conversation takes too long to render; shorten it, or give the model another template",
    "memory": "chat template: this conversation takes too much memory to render; shorten it, or give the model another "
    "template",
    "closed": "the model is no longer served",
}
Turns = Sequence[Message]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """A text as token ids."""

    ids: tuple[int, ...] | None  # None if they are more than the limit
    count: int
    exact: bool = True  # otherwise `count` is a lower bound


class Encoder:
    """Renders and encodes for one model. All methods raise InputError, and ApiError if too many questions wait."""

    def __init__(self, worker: Worker):
        self._worker = worker

    async def chat(
        self, owner: str, messages: Turns, limit: int, prompt: bool = True, tools: Sequence[Tool] = ()
    ) -> Encoded:
        """A conversation, with the generation prompt after it if `prompt`. tools: the functions that may be called."""
        size, tools = size_of(messages, tools), list(tools)
        found = await self._ask(owner, size, "chat", messages=messages, limit=limit, prompt=prompt, tools=tools)
        return encoded(found)

    async def texts(self, owner: str, texts: Sequence[str], limit: int) -> list[Encoded]:
        """Texts between the tokens that the tokenizer adds, such as BOS."""
        pieces = in_pieces(list(texts), len)
        asked = [self._ask(owner, sum(map(len, piece)), "texts", texts=piece, limit=limit) for piece in pieces]
        return [encoded(found) for piece in await all_of(asked) for found in piece]

    async def answers(self, owner: str, conversations: Sequence[Turns], limit: int, whole: bool) -> list[Encoded]:
        """Conversations that end with an answer, up to its end of turn, or as a `whole`."""
        pieces = in_pieces(list(conversations), size_of)
        asked = [
            self._ask(owner, sum(map(size_of, piece)), "answers", conversations=piece, limit=limit, whole=whole)
            for piece in pieces
        ]
        return [encoded(found) for piece in await all_of(asked) for found in piece]

    async def marked(self, owner: str, text: str, limit: int, framed: bool) -> Encoded:
        """A text in which the text of a special token is that token; `framed`: between the tokens that are added."""
        return encoded(await self._ask(owner, len(text), "marked", text=text, limit=limit, framed=framed))

    async def decoded(self, owner: str, prompts: Sequence[Sequence[int]], special: bool = False) -> list[str]:
        """The texts of ids, with special tokens if `special`."""
        pieces = in_pieces(list(prompts), len)
        asked = [self._ask(owner, sum(map(len, p)), "decoded", prompts=p, special=special) for p in pieces]
        return [text for piece in await all_of(asked) for text in piece]

    async def fit(
        self, owner: str, system: str, messages: Turns, hidden: Sequence[int], limit: int
    ) -> tuple[tuple[int, ...] | None, int]:
        """The ids of the messages without those in `hidden` and without the oldest turns, so that they fit the limit.

        Also how many turns were left out. The ids are None if even the last turn is too long.
        """
        size = size_of(messages) + len(system)
        found = await self._ask(owner, size, "fit", system=system, messages=messages, hidden=list(hidden), limit=limit)
        return found["ids"] and tuple(found["ids"]), found["dropped"]

    def start(self) -> "Future[Any]":
        """Start the process before the first question. The result comes when it is ready."""
        return self._worker.submit("", 0, "texts", texts=[""], limit=1)

    def close(self) -> None:
        self._worker.close()

    async def _ask(self, owner: str, size: int, job: str, **arguments: Any) -> Any:
        try:
            return await self._worker.ask(owner, size, job, **arguments)
        except Refused as refused:
            raise InputError(str(refused)) from None
        except Overrun as overrun:
            raise InputError(OVERRUN[str(overrun)]) from None
        except Failed as failed:
            log.error("the encoding process failed: %s", failed)
            raise


def encoder_of(tokenizer: Tokenizer, memory: int = MEMORY, seconds: float = SECONDS) -> Encoder:
    """An encoder whose process starts with the first question and may take so much memory and time for each."""
    module, parts = "tutelage.server.encoding_process", parts_of(tokenizer)
    return Encoder(Worker(Child(module, memory=memory, nice=NICE, set_up=lambda: parts), seconds))


class Encoders:
    """The encoders of all models. Equal tokenizers share one, such as those of a policy and its reward model."""

    def __init__(self) -> None:
        self._made: dict[str, Encoder] = {}

    def of(self, tokenizer: Tokenizer) -> Encoder:
        """The encoder for this tokenizer. Its process starts with the first question."""
        content = json.dumps(parts_of(tokenizer)).encode()
        return self._made.setdefault(hashlib.sha256(content).hexdigest(), encoder_of(tokenizer))

    def keep(self, used: set[Encoder]) -> None:
        """End the processes of all other encoders."""
        for name in [name for name, encoder in self._made.items() if encoder not in used]:
            self._made.pop(name).close()


def encoded(found: dict[str, Any]) -> Encoded:
    return Encoded(None if found["ids"] is None else tuple(found["ids"]), found["count"], found["exact"])


def size_of(messages: Turns, tools: Sequence[Tool] = ()) -> int:
    """Characters of a conversation, with some for each turn's frame, and of the descriptions of functions."""
    return sum(map(_size_of_turn, messages)) + (len(json.dumps(tools)) if tools else 0)


def _size_of_turn(message: Message) -> int:
    calls = (call["function"] for call in message.get("tool_calls", ()))
    called = sum(len(function["name"]) + len(function["arguments"]) for function in calls)
    return len(message["content"]) + len(message.get("reasoning_content", "")) + called + 20


def parts_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the process needs to make the same tokenizer."""
    return {"backend": tokenizer.to_json(), "settings": tokenizer.settings, "ends": list(tokenizer.end_ids)}
