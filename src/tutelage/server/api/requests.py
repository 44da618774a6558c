"""From what a program asks to what the engine is told.

body, model  ->  Plan: the engine's requests, stop strings, the most it can cost
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.engine.requests import Request
from tutelage.errors import InputError
from tutelage.moderation.moderator import Moderator
from tutelage.sampling.distribution import DistributionConfig
from tutelage.server.api.schemas import ChatRequest, CompletionRequest, Sampled
from tutelage.server.generation import seed_of
from tutelage.server.metrics import count_flags
from tutelage.server.registry import Served
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer
from tutelage.web.errors import ApiError

SHORT = 16  # tokens of a plain completion that asks for no length, as in OpenAI's API


@dataclass(frozen=True)
class Plan:
    """What one call makes of the model; nothing, if the policy refuses it."""

    served: Served
    prompts: list[tuple[int, ...]]
    requests: list[Request]
    stop: list[str] = field(default_factory=list)
    refused: bool = False

    @property
    def most_tokens(self) -> int:
        """The most that the answer can cost: each prompt once, every answer at its longest."""
        return sum(map(len, self.prompts)) + sum(request.max_new_tokens for request in self.requests)


def plan_chat(served: Served, body: ChatRequest, owner: str, moderator: Moderator) -> Plan:
    """One prompt, n answers. Raises ApiError when it does not fit the model."""
    messages = [turn.message() for turn in body.messages]
    try:
        prompt = tuple(encode_chat(served.tokenizer, messages, add_generation_prompt=True).ids)
    except InputError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from None
    if refused(moderator, [message["content"] for message in messages if message["role"] != "assistant"]):
        return Plan(served, [prompt], [], refused=True)
    longest = body.max_completion_tokens or body.max_tokens
    room = check_room(served, prompt, longest or 1, "messages")
    top = (body.top_logprobs or 0) if body.logprobs else 0
    seeds = [seed_of(body.seed, i) for i in range(body.n or 1)]
    requests = [request_of(served, body, prompt, longest or room, seed, owner, top=top) for seed in seeds]
    return Plan(served, [prompt], requests, body.stops)


def plan_completion(served: Served, body: CompletionRequest, owner: str, moderator: Moderator) -> Plan:
    """Each prompt's answers, one prompt after the other; best_of of each. Raises ApiError as `plan_chat` does."""
    longest = SHORT if body.max_tokens is None else body.max_tokens
    prompts = prompts_of(served.tokenizer, body)
    if refused(moderator, [served.tokenizer.decode(prompt) for prompt in prompts]):
        return Plan(served, prompts, [], refused=True)
    requests = []
    for prompt in prompts:
        check_room(served, prompt, longest, "prompt")
        if longest or scored(body):
            for i in range(body.best_of or body.n or 1):
                seed = seed_of(body.seed, i)
                top, with_prompt = body.logprobs or 0, scored(body)
                requests.append(request_of(served, body, prompt, longest, seed, owner, top=top, scored=with_prompt))
    return Plan(served, prompts, requests, body.stops)


def scored(body: CompletionRequest) -> bool:
    """Whether the prompt's own log-probabilities are wanted."""
    return bool(body.echo) and body.logprobs is not None


def request_of(
    served: Served,
    body: Sampled,
    prompt: tuple[int, ...],
    longest: int,
    seed: int,
    owner: str,
    *,
    top: int,
    scored: bool = False,
) -> Request:
    """One answer, as the engine wants it asked for. Waiting requests of different owners take turns."""
    return Request(
        prompt=prompt,
        max_new_tokens=longest,
        sampling=distribution(body, served.tokenizer.vocab_size),
        seed=seed,
        stop_ids=frozenset({served.tokenizer.end_of_turn_id, served.tokenizer.end_of_text_id}),
        top_logprobs=top,
        prompt_logprobs=scored,
        owner=owner,
        adapter=served.adapter,
    )


def distribution(body: Sampled, vocab_size: int) -> DistributionConfig:
    """The sampler's settings; OpenAI's defaults where nothing is said."""
    bias = tuple((int(token), value) for token, value in (body.logit_bias or {}).items())
    if unknown := [token for token, _ in bias if token >= vocab_size]:
        message = f"logit_bias names token {unknown[0]}; the model's tokens are 0 to {vocab_size - 1}."
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


def check_room(served: Served, prompt: Sequence[int], longest: int, param: str) -> int:
    """How many tokens are left for the answer. Raises ApiError if fewer than are asked for."""
    room = served.context - len(prompt)
    if longest > room:
        message = (
            f"This model's maximum context length is {served.context} tokens. You asked for {len(prompt) + longest}: "
            f"{len(prompt)} in the {param}, {longest} in the completion. Shorten one of them."
        )
        raise ApiError(400, message, param=param, code="context_length_exceeded")
    return room


def prompts_of(tokenizer: Tokenizer, body: CompletionRequest) -> list[tuple[int, ...]]:
    """A text, several, ids, or several lists of ids. An empty text is the beginning of a document."""
    given: Any = "" if body.prompt is None else body.prompt
    several = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    prompts = [tokenizer.encode(one) if isinstance(one, str) else one for one in several]
    for prompt in prompts:
        if unknown := [token for token in prompt if token >= tokenizer.vocab_size]:
            message = f"The prompt names token {unknown[0]}; the model's tokens are 0 to {tokenizer.vocab_size - 1}."
            raise ApiError(400, message, param="prompt", code="invalid_value")
    return [tuple(prompt) or (tokenizer.end_of_text_id,) for prompt in prompts]


def refused(moderator: Moderator, texts: Sequence[str]) -> bool:
    """Whether the moderation policy lets nobody ask this."""
    if moderator.config.moderate not in ("input", "both"):
        return False
    verdicts = moderator.check(texts)
    count_flags("input", verdicts)
    return any(moderator.stops("input", verdict) for verdict in verdicts)
