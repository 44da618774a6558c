"""POST /v1/completions: continue a text, as in OpenAI's API of 2020 to 2022.

With `echo` the prompt is put before the completion. With `logprobs` as well, the prompt's tokens get log-probabilities;
`max_tokens: 0` then only scores the prompt. The first token has no prefix, so its log-probability is null. The
stop token then has an entry, too, because programs such as lm-eval cut one entry per sampled token off the end.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from tutelage.engine.requests import PromptScored, Token
from tutelage.server.api.call import Call, make_plan
from tutelage.server.api.choices import Choice, TokenList, usage
from tutelage.server.api.requests import Plan, plan_completion, scores_prompt
from tutelage.server.api.schemas import DOCUMENTED, CompletionRequest
from tutelage.server.detokenizer import Detokenizer, TextDelta, TokenEntry
from tutelage.server.generation import GenerationEnd
from tutelage.server.sse import event
from tutelage.web.auth import Caller, Inference
from tutelage.web.errors import JSON, dump
from tutelage.web.json_pieces import in_turns

router = APIRouter(responses=DOCUMENTED, tags=["completions"])


@router.post("/v1/completions", response_model=None)
async def completions(request: Request, body: CompletionRequest, caller: Inference) -> Response:
    """Continue a text."""
    plan = await make_plan(plan_completion, request, body, caller)
    return await CompletionCall(request, body, caller, plan).respond()


class CompletionCall(Call):
    """One plain call: one or more prompts, each with n choices."""

    chat = False
    body: CompletionRequest

    def __init__(self, request: Request, body: CompletionRequest, caller: Caller, plan: Plan):
        self.each = body.best_of or body.n or 1  # completions per prompt
        super().__init__(request, body, caller, plan, "cmpl-", self.each * len(plan.prompts))
        self.head["object"] = "text_completion"
        byte_level = plan.served.tokenizer.byte_level
        self.echoes = [text_of(prompt, self.table, byte_level) for prompt in plan.prompts] if body.echo else []
        for choice in self.choices if not plan.requests and not plan.refused else []:
            choice.end = GenerationEnd("length", 0, 0, 0)  # nothing to generate and nothing to score

    async def whole(self) -> Response:
        async with await self.start():
            await self.finish()
        choices = []
        for index, best in enumerate(self.best()):
            choices.append(await in_turns(self.as_choice(index, self.choices[best])))
            await asyncio.sleep(0)  # a hundred prompts with log-probabilities take seconds; others go between them
        begin = dump(self.head | {"usage": usage(self.plan.prompts, self.choices)})
        content = begin[:-1] + b',"choices":[' + b",".join(choices) + b"]}"
        return JSON(content, headers=self.headers)

    def best(self) -> list[int]:
        """Indices of the choices to return: per prompt the n with the highest mean_logprob, or all n in order."""
        n, best = self.body.n or 1, []
        for first in range(0, len(self.choices), self.each):
            rows = list(range(first, first + self.each))
            if n < self.each:
                rows.sort(key=lambda row: -self.choices[row].mean_logprob)
            best += rows[:n]
        return best

    def as_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A choice as OpenAI's object."""
        prompt = index // (self.body.n or 1)
        text = (self.echoes[prompt] if self.body.echo else "") + choice.text
        logprobs = self.logprobs(prompt, (*choice.entries, *self.ending(choice.end)), choice.scored)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": choice.reason}

    def ending(self, end: GenerationEnd | None) -> tuple[TokenEntry, ...]:
        """The entries of sampled tokens without text, if the prompt's tokens are listed, too."""
        return end.ending if end and scores_prompt(self.body) else ()

    def logprobs(self, prompt: int, entries: Sequence[TokenEntry], score: PromptScored | None) -> dict[str, Any] | None:
        """The prompt's tokens, if it was scored, then the completion's. None if `logprobs` was not requested."""
        if self.body.logprobs is None:
            return None
        tokens = TokenList()
        for entry in prompt_entries(self.plan.prompts[prompt], self.table, score) if score else []:
            if entry.offset == 0 and not tokens.tokens:
                tokens.add_first(entry.id, self.table)
            else:
                tokens.add(entry, self.table)
        shift = len(self.echoes[prompt]) if self.body.echo else 0
        for entry in entries:
            tokens.add(entry, self.table, shift)
        return asdict(tokens)

    async def events(self, stack: AsyncExitStack) -> AsyncIterator[bytes]:
        """First the echoed prompts in order, then text as it comes, one end per choice, and last the usage."""
        async with stack:
            if self.body.echo and not scores_prompt(self.body):
                for index in range(len(self.choices)):
                    yield self.chunk(index, self.echoes[index // self.each])
            if not self.plan.requests:
                for index in range(len(self.choices)):
                    yield self.chunk(index, reason=self.choices[index].reason)
            async for index, item in self.generation:
                self.choices[index].add(item)
                if isinstance(item, PromptScored):
                    yield self.chunk(index, self.echoes[index // self.each], score=item)
                elif isinstance(item, GenerationEnd):
                    if ending := self.ending(item):
                        yield self.chunk(index, delta=TextDelta("", ending))
                    yield self.chunk(index, reason=item.reason)
                elif item.text or (item.entries and self.body.logprobs is not None):
                    yield self.chunk(index, item.text, item)
            if self.body.wants_usage:
                yield event(self.head | {"choices": [], "usage": usage(self.plan.prompts, self.choices)})
            yield b"data: [DONE]\n\n"

    def chunk(
        self,
        index: int,
        text: str = "",
        delta: TextDelta | None = None,
        score: PromptScored | None = None,
        reason: str | None = None,
    ) -> bytes:
        """One event of a choice. `delta` and `score` add log-probabilities, if requested."""
        logprobs = self.logprobs(index // self.each, delta.entries if delta else (), score) if delta or score else None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return event(self.head | {"choices": [choice]} | ({"usage": None} if self.body.wants_usage else {}))


def text_of(prompt: Sequence[int], table: Sequence[bytes], byte_level: bool) -> str:
    """The text of the prompt's tokens, as a detokenizer gives it."""
    content = b"".join(table[token] for token in prompt)
    return (content if byte_level else content.removeprefix(b" ")).decode("utf-8", "replace")


def prompt_entries(prompt: Sequence[int], table: Sequence[bytes], score: PromptScored) -> list[TokenEntry]:
    """The prompt's tokens with log-probabilities and offsets. The first log-probability is a placeholder."""
    detokenizer = Detokenizer(table)
    entries: list[TokenEntry] = []
    for token, logprob, top in zip(prompt, score.logprobs, score.top, strict=True):
        entries += detokenizer.feed(Token(token, logprob or 0.0, top)).entries
    return [*entries, *detokenizer.finish().entries]
