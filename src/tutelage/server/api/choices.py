"""OpenAI's choices, assembled from the events of a generation: text, log-probabilities, finish reason and usage."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.engine.requests import PromptScored
from tutelage.server.detokenizer import TextDelta, TokenEntry, name_of
from tutelage.server.generation import GenerationEnd, GenerationEvent
from tutelage.store.ids import new_id
from tutelage.text.answer import AnswerReader
from tutelage.text.pieces import CallBegin, Content, Piece, Reasoning

REFUSAL = "This request was stopped by the server's moderation policy."
AT_A_TIME = 50  # tokens
LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON lacks; OpenAI's value


@dataclass
class CalledFunction:
    """A call in an answer."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Choice:
    """One completion as it grows. A chat's has a reader, which separates its text into reasoning, content and calls."""

    text: str = ""
    entries: list[TokenEntry] = field(default_factory=list)
    scored: PromptScored | None = None
    end: GenerationEnd | None = None
    reader: AnswerReader | None = None
    short_ids: bool = False  # of calls, as Mistral's templates demand them
    reasoning: str = ""
    content: str = ""
    calls: list[CalledFunction] = field(default_factory=list)

    def add(self, event: GenerationEvent) -> list[Piece]:
        """Add an event. Returns what it adds to the answer, if there is a reader."""
        pieces: list[Piece] = []
        if isinstance(event, TextDelta):
            self.text += event.text
            self.entries += event.entries
            pieces = self.reader.feed(event.text) if self.reader else []
        elif isinstance(event, PromptScored):
            self.scored = event
        else:
            self.end = event
            pieces = self.reader.finish() if self.reader else []
        for piece in pieces:
            self._add(piece)
        return pieces

    def _add(self, piece: Piece) -> None:
        if isinstance(piece, Reasoning):
            self.reasoning += piece.text
        elif isinstance(piece, Content):
            self.content += piece.text
        elif isinstance(piece, CallBegin):
            number = new_id("")
            self.calls.append(CalledFunction(number[-9:] if self.short_ids else f"call_{number}", piece.name))
        else:
            self.calls[piece.index].arguments += piece.text

    @classmethod
    def refused(cls) -> "Choice":
        """The empty choice for a prompt that the moderation policy stops."""
        return cls(end=GenerationEnd("content_filter", 0, 0, 0))

    @property
    def reason(self) -> str:
        """OpenAI's finish_reason."""
        assert self.end, "the completion has not ended"
        return "tool_calls" if self.calls and self.end.reason == "stop" else self.end.reason

    @property
    def complete(self) -> bool:
        """Whether nothing that may follow belongs to the answer."""
        return self.reader is not None and self.reader.done

    @property
    def reasoning_tokens(self) -> int:
        return self.reader.reasoning_tokens(entry.offset for entry in self.entries) if self.reader else 0

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability per token, which `best_of` ranks by; minus infinity if there are no tokens."""
        return sum(entry.logprob for entry in self.entries) / len(self.entries) if self.entries else -math.inf


def usage(prompts: Sequence[Sequence[int]], choices: Sequence[Choice]) -> dict[str, Any]:
    """OpenAI's usage: each prompt is counted once, and every completion. All prompts have equally many choices."""
    ends, each = [choice.end for choice in choices if choice.end], len(choices) // len(prompts)
    prompt_tokens, completion_tokens = sum(map(len, prompts)), sum(end.completion_tokens for end in ends)
    cached = sum(min(end.cached_tokens for end in ends[at : at + each]) for at in range(0, len(ends), each))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(choice.reasoning_tokens for choice in choices)},
    }


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def chat_logprobs(entries: Sequence[TokenEntry], table: Sequence[bytes]) -> dict[str, Any]:
    """Log-probabilities in the shape of chat completions: every token comes with its bytes."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"token": name_of(table[token]), "logprob": finite(logprob), "bytes": list(table[token])}

    content = [one(e.id, e.logprob) | {"top_logprobs": [one(*top) for top in e.top]} for e in entries]
    return {"content": content, "refusal": None}


async def all_logprobs(entries: Sequence[TokenEntry], table: Sequence[bytes]) -> dict[str, Any]:
    """Like `chat_logprobs`. Other requests go on between a few tokens and the next: this takes 0.2 ms for each."""
    content: list[Any] = []
    for first in range(0, len(entries), AT_A_TIME):
        content += chat_logprobs(entries[first : first + AT_A_TIME], table)["content"]
        await asyncio.sleep(0)
    return {"content": content, "refusal": None}


@dataclass
class TokenList:
    """Log-probabilities in the shape of plain completions: four lists of equal length."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, entry: TokenEntry, table: Sequence[bytes], shift: int = 0) -> None:
        """Append a token. `top_logprobs` always includes the token itself. `shift` is added to its offset."""
        top = {name_of(table[token]): finite(logprob) for token, logprob in entry.top}
        self.tokens.append(name_of(table[entry.id]))
        self.token_logprobs.append(finite(entry.logprob))
        self.top_logprobs.append(top | {name_of(table[entry.id]): finite(entry.logprob)})
        self.text_offset.append(entry.offset + shift)

    def add_first(self, token: int, table: Sequence[bytes]) -> None:
        """Append the first token of a prompt, which has no log-probability because nothing precedes it."""
        self.tokens.append(name_of(table[token]))
        self.token_logprobs.append(None)
        self.top_logprobs.append(None)
        self.text_offset.append(0)
