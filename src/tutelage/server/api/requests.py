"""Turns the body of an API call into requests for the engine.

body, model  ->  Plan: the engine's requests, stop strings, the most tokens it can cost
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tutelage.engine.constraint import Constraint
from tutelage.engine.requests import Request
from tutelage.errors import InputError
from tutelage.sampling.distribution import DistributionConfig
from tutelage.server.api.answer_format import AnswerFormat, format_of
from tutelage.server.api.chat_schemas import ChatRequest
from tutelage.server.api.schemas import CompletionRequest, SamplingRequest
from tutelage.server.encoder import Encoded
from tutelage.server.generation import seed_of
from tutelage.server.metrics import count_flags
from tutelage.server.registry import Served
from tutelage.server.text_work import TextWork
from tutelage.web.errors import ApiError

DEFAULT_MAX_TOKENS = 16  # of a plain completion, as in OpenAI's API


@dataclass(frozen=True)
class Plan:
    """What one call asks of the engine. It has no requests if the moderation policy refuses the call."""

    served: Served
    prompts: list[tuple[int, ...]]
    requests: list[Request]
    stop: list[str] = field(default_factory=list)
    refused: bool = False
    format: AnswerFormat = AnswerFormat()

    @property
    def most_tokens(self) -> int:
        """The most tokens that the call can cost: each prompt once, every completion at its maximum length."""
        return sum(map(len, self.prompts)) + sum(request.max_new_tokens for request in self.requests)


async def plan_chat(served: Served, body: ChatRequest, owner: str, work: TextWork) -> Plan:
    """The plan of a chat call: one prompt, n completions. Raises ApiError if it does not fit the model.

    The length is checked first, so that no text is moderated that no model will read.
    """
    messages = [turn.message() for turn in body.messages]
    max_tokens = body.max_completion_tokens or body.max_tokens
    try:
        tools = [tool.sent for tool in body.offered]
        encoded = await served.encoder.chat(owner, messages, served.context, tools=tools)
    except InputError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from None
    prompt, room = check_room(served, encoded, max_tokens or 1, "messages")
    if await refused(work, owner, [message["content"] for message in messages if message["role"] != "assistant"]):
        return Plan(served, [prompt], [], refused=True)
    top = (body.top_logprobs or 0) if body.logprobs else 0
    if body.response_format or body.callable:  # its grammar may take long to compile
        assert served.vocabulary, "only policies generate text"
        answer = await served.vocabulary.when_free(partial(format_of, served, body, prompt))
    else:
        answer = format_of(served, body, prompt)
    requests = [
        engine_request(
            served,
            body,
            prompt,
            max_tokens or room,
            seed_of(body.seed, i),
            owner,
            top=top,
            constraint=answer.grammar.begin() if answer.grammar else None,
        )
        for i in range(body.n or 1)
    ]
    return Plan(served, [prompt], requests, body.stops, format=answer)


async def plan_completion(served: Served, body: CompletionRequest, owner: str, work: TextWork) -> Plan:
    """The plan of a plain call: best_of (or n) completions of each prompt. Raises ApiError as `plan_chat` does."""
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    encoded = await prompts_of(served, body, owner)
    prompts = [check_room(served, each, max_tokens, "prompt")[0] for each in encoded]
    if await refused(work, owner, await texts_of(served, body, prompts, owner)):
        return Plan(served, prompts, [], refused=True)
    requests = []
    for prompt in prompts:
        if max_tokens or scores_prompt(body):
            for i in range(body.best_of or body.n or 1):
                seed, top = seed_of(body.seed, i), body.logprobs or 0
                requests.append(
                    engine_request(
                        served, body, prompt, max_tokens, seed, owner, top=top, score_prompt=scores_prompt(body)
                    )
                )
    return Plan(served, prompts, requests, body.stops)


def scores_prompt(body: CompletionRequest) -> bool:
    """Whether the prompt's log-probabilities are requested (`echo` and `logprobs`)."""
    return bool(body.echo) and body.logprobs is not None


def engine_request(
    served: Served,
    body: SamplingRequest,
    prompt: tuple[int, ...],
    max_tokens: int,
    seed: int,
    owner: str,
    *,
    top: int,
    score_prompt: bool = False,
    constraint: Constraint | None = None,
) -> Request:
    """The engine's request for one completion. Waiting requests of different owners take turns."""
    return Request(
        prompt=prompt,
        max_new_tokens=max_tokens,
        sampling=distribution(body, served.tokenizer.vocab_size),
        seed=seed,
        stop_ids=frozenset({*served.tokenizer.end_ids, served.tokenizer.end_of_text_id}),
        top_logprobs=top,
        prompt_logprobs=score_prompt,
        owner=owner,
        adapter=served.adapter,
        constraint=constraint,
    )


def distribution(body: SamplingRequest, vocab_size: int) -> DistributionConfig:
    """The sampling settings, with OpenAI's defaults."""
    bias = tuple((int(token), value) for token, value in (body.logit_bias or {}).items())
    if unknown := [token for token, _ in bias if token >= vocab_size]:
        message = f"logit_bias contains token {unknown[0]}; the model's tokens are 0 to {vocab_size - 1}."
        raise ApiError(400, message, param="logit_bias", code="invalid_value")
    return DistributionConfig(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=bias,
    )


def check_room(served: Served, encoded: Encoded, max_tokens: int, param: str) -> tuple[tuple[int, ...], int]:
    """The prompt's ids, and how many tokens the context leaves for the completion.

    Raises ApiError if they are fewer than `max_tokens`.
    """
    room = served.context - encoded.count
    if encoded.ids is None or max_tokens > room:
        about = "" if encoded.exact else "at least "
        message = (
            f"This model's maximum context length is {served.context} tokens. However, you requested "
            f"{about}{encoded.count + max_tokens} tokens: {about}{encoded.count} in the {param}, {max_tokens} in the "
            "completion. Shorten one of them."
        )
        raise ApiError(400, message, param=param, code="context_length_exceeded")
    return encoded.ids, room


async def prompts_of(served: Served, body: CompletionRequest, owner: str) -> list[Encoded]:
    """The prompts as ids. OpenAI allows a text, several texts, ids, or several lists of ids.

    A text gets the tokens that its tokenizer adds, such as BOS. An empty prompt becomes the end-of-text token, which
    begins a document.
    """
    field: Any = "" if body.prompt is None else body.prompt
    items = field if isinstance(field, list) and not isinstance(field[0], int) else [field]
    if isinstance(items[0], str):
        encoded = await served.encoder.texts(owner, items, served.context)
    else:
        encoded = [as_given(served, ids) for ids in items]
    beginning = Encoded((served.tokenizer.end_of_text_id,), 1)
    return [each if each.count else beginning for each in encoded]


async def texts_of(served: Served, body: CompletionRequest, prompts: list[tuple[int, ...]], owner: str) -> list[str]:
    """The prompts as texts."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    if isinstance(body.prompt, list) and isinstance(body.prompt[0], str):
        return [text for text in body.prompt if isinstance(text, str)]
    return await served.encoder.decoded(owner, prompts)


def as_given(served: Served, ids: list[int]) -> Encoded:
    """A prompt that was given as ids. Raises ApiError for a token that the model does not have."""
    tokens = served.tokenizer.vocab_size
    if len(ids) > served.context:
        return Encoded(None, len(ids))
    if (largest := max(ids)) >= tokens:
        message = f"The prompt contains token {largest}; the model's tokens are 0 to {tokens - 1}."
        raise ApiError(400, message, param="prompt", code="invalid_value")
    return Encoded(tuple(ids), len(ids))


async def refused(work: TextWork, owner: str, texts: Sequence[str]) -> bool:
    """Whether the moderation policy stops these texts as input. Counts their flags."""
    if work.moderator.config.moderate not in ("input", "both"):
        return False
    verdicts = await work.verdicts(owner, texts)
    count_flags("input", verdicts)
    return any(work.moderator.stops("input", verdict) for verdict in verdicts)
