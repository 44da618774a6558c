"""POST /v1/completions: a text goes on, as in OpenAI's API of 2020 to 2022.

With `echo` the prompt stands before the answer, and with `logprobs` its tokens have theirs; `max_tokens: 0` then scores
the prompt and writes nothing. The first token has no prefix, so its log-probability is null.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from tutelage.engine.requests import PromptScored, Token
from tutelage.server.api.call import Call, planned
from tutelage.server.api.choices import Answer, TokenList, usage
from tutelage.server.api.requests import Plan, plan_completion, scored
from tutelage.server.api.schemas import DOCUMENTED, CompletionRequest
from tutelage.server.detokenizer import Detokenizer, TextDelta, TokenEntry
from tutelage.server.generation import Ended
from tutelage.server.sse import event
from tutelage.web.auth import Caller, Inference
from tutelage.web.errors import JSON

router = APIRouter(responses=DOCUMENTED, tags=["completions"])


@router.post("/v1/completions", response_model=None)
async def completions(request: Request, body: CompletionRequest, caller: Inference) -> Response:
    """Let the model go on with a text."""
    plan = await planned(plan_completion, request, body, caller)
    return await CompletionCall(request, body, caller, plan).respond()


class CompletionCall(Call):
    """One or more prompts, each with its answers."""

    chat = False
    body: CompletionRequest

    def __init__(self, request: Request, body: CompletionRequest, caller: Caller, plan: Plan):
        self.each = body.best_of or body.n or 1  # answers to each prompt
        super().__init__(request, body, caller, plan, "cmpl-", self.each * len(plan.prompts))
        self.head["object"] = "text_completion"
        byte_level = plan.served.tokenizer.byte_level
        self.echoes = [text_of(prompt, self.table, byte_level) for prompt in plan.prompts] if body.echo else []
        for answer in self.answers if not plan.requests and not plan.refused else []:
            answer.end = Ended("length", 0, 0, 0)  # nothing to write and nothing to score

    async def whole(self) -> Response:
        async with await self.start():
            await self.finish()
        choices = [self.choice(i, self.answers[chosen]) for i, chosen in enumerate(self.chosen())]
        bill = usage(self.plan.prompts, self.answers)
        return JSON({**self.head, "choices": choices, "usage": bill}, headers=self.headers)

    def chosen(self) -> list[int]:
        """Of each prompt's answers the n likeliest, all of them in their order if there are no more."""
        n, chosen = self.body.n or 1, []
        for first in range(0, len(self.answers), self.each):
            rows = list(range(first, first + self.each))
            if n < self.each:
                rows.sort(key=lambda row: -self.answers[row].mean_logprob)
            chosen += rows[:n]
        return chosen

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        prompt = index // (self.body.n or 1)
        text = (self.echoes[prompt] if self.body.echo else "") + answer.text
        logprobs = self.logprobs(prompt, answer.entries, answer.scored)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": answer.reason}

    def logprobs(self, prompt: int, entries: Sequence[TokenEntry], score: PromptScored | None) -> dict[str, Any] | None:
        """The prompt's tokens, if it was scored, then the answer's."""
        if self.body.logprobs is None:
            return None
        listed = TokenList()
        for entry in prompt_entries(self.plan.prompts[prompt], self.table, score) if score else []:
            if entry.offset == 0 and not listed.tokens:
                listed.add_first(entry.id, self.table)
            else:
                listed.add(entry, self.table)
        shift = len(self.echoes[prompt]) if self.body.echo else 0
        for entry in entries:
            listed.add(entry, self.table, shift)
        return asdict(listed)

    async def events(self, stack: AsyncExitStack) -> AsyncIterator[bytes]:
        """The echoes in order, then the texts as they come, each end once, the bill last."""
        async with stack:
            if self.body.echo and not scored(self.body):
                for index in range(len(self.answers)):
                    yield self.chunk(index, self.echoes[index // self.each])
            if not self.plan.requests:
                for index in range(len(self.answers)):
                    yield self.chunk(index, reason=self.answers[index].reason)
            async for index, happening in self.generation:
                self.answers[index].add(happening)
                if isinstance(happening, PromptScored):
                    yield self.chunk(index, self.echoes[index // self.each], score=happening)
                elif isinstance(happening, Ended):
                    yield self.chunk(index, reason=happening.reason)
                elif happening.text or (happening.entries and self.body.logprobs is not None):
                    yield self.chunk(index, happening.text, happening)
            if self.body.wants_usage:
                yield event(self.head | {"choices": [], "usage": usage(self.plan.prompts, self.answers)})
            yield b"data: [DONE]\n\n"

    def chunk(
        self,
        index: int,
        text: str = "",
        piece: TextDelta | None = None,
        score: PromptScored | None = None,
        reason: str | None = None,
    ) -> bytes:
        logprobs = self.logprobs(index // self.each, piece.entries if piece else (), score) if piece or score else None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return event(self.head | {"choices": [choice]} | ({"usage": None} if self.body.wants_usage else {}))


def text_of(prompt: Sequence[int], table: Sequence[bytes], byte_level: bool) -> str:
    """The prompt's text, as its tokens spell it."""
    pieces = Detokenizer(table, strip_first=not byte_level)
    return "".join(pieces.feed(Token(token, 0.0, [])).text for token in prompt) + pieces.finish().text


def prompt_entries(prompt: Sequence[int], table: Sequence[bytes], score: PromptScored) -> list[TokenEntry]:
    """The prompt's tokens with their log-probabilities and places; the first one's is not used."""
    pieces = Detokenizer(table)
    entries: list[TokenEntry] = []
    for token, logprob, top in zip(prompt, score.logprobs, score.top, strict=True):
        entries += pieces.feed(Token(token, logprob or 0.0, top)).entries
    return [*entries, *pieces.finish().entries]
