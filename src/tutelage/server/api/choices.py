"""What came of a generation, put together: texts, tokens, ends, and the bill."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.engine.requests import PromptScored
from tutelage.server.detokenizer import TextDelta, TokenEntry, name_of
from tutelage.server.generation import Ended, Happening

REFUSAL = "This request was stopped by the server's moderation policy."
LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI writes this


@dataclass
class Answer:
    """One answer as it grows."""

    text: str = ""
    entries: list[TokenEntry] = field(default_factory=list)
    scored: PromptScored | None = None
    end: Ended | None = None

    def add(self, happening: Happening) -> None:
        if isinstance(happening, TextDelta):
            self.text += happening.text
            self.entries += happening.entries
        elif isinstance(happening, PromptScored):
            self.scored = happening
        else:
            self.end = happening

    @classmethod
    def refused(cls) -> "Answer":
        """To what the moderation policy lets no one ask."""
        return cls(end=Ended("content_filter", 0, 0, 0))

    @property
    def reason(self) -> str:
        assert self.end, "the answer has not ended"
        return self.end.reason

    @property
    def mean_logprob(self) -> float:
        """How likely the model finds its answer, per token: what best_of goes by. An empty one is no answer."""
        return sum(entry.logprob for entry in self.entries) / len(self.entries) if self.entries else -math.inf


def usage(prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> dict[str, Any]:
    """OpenAI's bill: each prompt counted once, every answer that was written. As many answers belong to each prompt."""
    ends, each = [answer.end for answer in answers if answer.end], len(answers) // len(prompts)
    prompt_tokens, completion_tokens = sum(map(len, prompts)), sum(end.completion_tokens for end in ends)
    cached = sum(min(end.cached_tokens for end in ends[at : at + each]) for at in range(0, len(ends), each))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def chat_logprobs(entries: Sequence[TokenEntry], table: Sequence[bytes]) -> dict[str, Any]:
    """The shape of chat completions: exact bytes with each token."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"token": name_of(table[token]), "logprob": finite(logprob), "bytes": list(table[token])}

    content = [one(e.id, e.logprob) | {"top_logprobs": [one(*top) for top in e.top]} for e in entries]
    return {"content": content, "refusal": None}


@dataclass
class TokenList:
    """The shape of plain completions: four lists of equal length."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, entry: TokenEntry, table: Sequence[bytes], shift: int = 0) -> None:
        """One token; the chosen one is always among the likely ones."""
        likely = {name_of(table[token]): finite(logprob) for token, logprob in entry.top}
        self.tokens.append(name_of(table[entry.id]))
        self.token_logprobs.append(finite(entry.logprob))
        self.top_logprobs.append(likely | {name_of(table[entry.id]): finite(entry.logprob)})
        self.text_offset.append(entry.offset + shift)

    def add_first(self, token: int, table: Sequence[bytes]) -> None:
        """The first token of a prompt, which nothing precedes."""
        self.tokens.append(name_of(table[token]))
        self.token_logprobs.append(None)
        self.top_logprobs.append(None)
        self.text_offset.append(0)
