"""Turns the body of an API call into requests for the engine.

body, model  ->  Plan: the engine's requests, stop strings, the most tokens it can cost
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.engine.constraint import Constraint
from tutelage.engine.requests import Request
from tutelage.errors import InputError
from tutelage.moderation.moderator import Moderator
from tutelage.sampling.distribution import DistributionConfig
from tutelage.server.api.answer_format import AnswerFormat, format_of
from tutelage.server.api.chat_schemas import ChatRequest
from tutelage.server.api.schemas import CompletionRequest, SamplingRequest
from tutelage.server.generation import seed_of
from tutelage.server.metrics import count_flags
from tutelage.server.registry import Served
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer
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


def plan_chat(served: Served, body: ChatRequest, owner: str, moderator: Moderator) -> Plan:
    """The plan of a chat call: one prompt, n completions. Raises ApiError if it does not fit the model."""
    messages = [turn.message() for turn in body.messages]
    try:
        tools = [tool.sent for tool in body.offered]
        prompt = tuple(encode_chat(served.tokenizer, messages, add_generation_prompt=True, tools=tools).ids)
    except InputError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from None
    if refused(moderator, [message["content"] for message in messages if message["role"] != "assistant"]):
        return Plan(served, [prompt], [], refused=True)
    max_tokens = body.max_completion_tokens or body.max_tokens
    room = check_room(served, prompt, max_tokens or 1, "messages")
    top = (body.top_logprobs or 0) if body.logprobs else 0
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


def plan_completion(served: Served, body: CompletionRequest, owner: str, moderator: Moderator) -> Plan:
    """The plan of a plain call: best_of (or n) completions of each prompt. Raises ApiError as `plan_chat` does."""
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    prompts = prompts_of(served.tokenizer, body)
    if refused(moderator, [served.tokenizer.decode(prompt) for prompt in prompts]):
        return Plan(served, prompts, [], refused=True)
    requests = []
    for prompt in prompts:
        check_room(served, prompt, max_tokens, "prompt")
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


def check_room(served: Served, prompt: Sequence[int], max_tokens: int, param: str) -> int:
    """How many tokens the context leaves for the completion. Raises ApiError if they are fewer than `max_tokens`."""
    room = served.context - len(prompt)
    if max_tokens > room:
        message = (
            f"This model's maximum context length is {served.context} tokens. However, you requested "
            f"{len(prompt) + max_tokens} tokens: {len(prompt)} in the {param}, {max_tokens} in the completion. "
            "Shorten one of them."
        )
        raise ApiError(400, message, param=param, code="context_length_exceeded")
    return room


def prompts_of(tokenizer: Tokenizer, body: CompletionRequest) -> list[tuple[int, ...]]:
    """The prompts as ids. OpenAI allows a text, several texts, ids, or several lists of ids.

    A text gets the tokens that its tokenizer adds, such as BOS. An empty prompt becomes the end-of-text token, which
    begins a document.
    """
    field: Any = "" if body.prompt is None else body.prompt
    items = field if isinstance(field, list) and not isinstance(field[0], int) else [field]
    prompts = [tokenizer.encode_text(item) if isinstance(item, str) else item for item in items]
    for prompt in prompts:
        if unknown := [token for token in prompt if token >= tokenizer.vocab_size]:
            message = f"The prompt contains token {unknown[0]}; the model's tokens are 0 to {tokenizer.vocab_size - 1}."
            raise ApiError(400, message, param="prompt", code="invalid_value")
    return [tuple(prompt) or (tokenizer.end_of_text_id,) for prompt in prompts]


def refused(moderator: Moderator, texts: Sequence[str]) -> bool:
    """Whether the moderation policy stops these texts as input. Counts their flags."""
    if moderator.config.moderate not in ("input", "both"):
        return False
    verdicts = moderator.check(texts)
    count_flags("input", verdicts)
    return any(moderator.stops("input", verdict) for verdict in verdicts)
