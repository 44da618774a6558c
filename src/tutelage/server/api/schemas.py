"""Request bodies of the API: the supported fields of OpenAI's API, strictly validated.

Fields in WITHOUT_EFFECT are accepted silently. Fields in REFUSED would change the response and are not supported, so
they are refused by name. All other unknown fields are ignored and listed in the response's header `x-ignored-params`.
`top_k`, `min_p` and `repetition_penalty` are our additions; OpenAI's clients send them through `extra_body`.
"""

import json
from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from tutelage.web.envelope import BODY_BYTES
from tutelage.web.errors import ApiError

MAX_CHOICES = 16
MAX_MESSAGES = 2000
MAX_PARTS = 10_000
MAX_DEPTH = 64  # levels of nested JSON
WITHOUT_EFFECT = set(
    "user safety_identifier service_tier prompt_cache_key prompt_cache_retention prompt_cache_options "
    "parallel_tool_calls verbosity reasoning_effort".split()
)
REFUSED = "tools tool_choice functions function_call audio web_search_options prediction suffix".split()


def at_most(entries: int, value: Any) -> Any:
    """Refuse a larger object before its entries are checked: each wrong one would have an error of its own."""
    if isinstance(value, dict) and len(value) > entries:
        raise ValueError(f"it should have at most {entries} entries, not {len(value)}")
    return value


# pydantic looks for lone surrogates, which UTF-8 cannot encode, only in texts with a limit. This one is a body's.
AnyText = Annotated[str, Field(max_length=BODY_BYTES)]
Text = Annotated[str, Field(min_length=1)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]  # compared with the end of the answer at each token
Stop = StopText | Annotated[list[StopText], Field(max_length=4, fail_fast=True)] | None
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    BeforeValidator(partial(at_most, 16)),
]
# Lists stop at their first wrong item: a list of a million wrong ones has one error, not a million.
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Many = Annotated[list[Ids], Field(min_length=1, max_length=128, fail_fast=True)]
Texts = Annotated[list[AnyText], Field(min_length=1, max_length=128, fail_fast=True)]
TokenName = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
LogitBias = Annotated[
    dict[TokenName, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(partial(at_most, 1024))
]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class RequestBody(BaseModel):
    """Base of all bodies. Types are strict: "1" is not a number."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    @model_validator(mode="after")
    def ignored_are_shallow_text(self) -> "RequestBody":
        """Refuse unknown fields that are nested too deeply, or contain a lone surrogate (which UTF-8 cannot encode).

        The known fields have their shapes, and pydantic checks their texts.
        """
        if self.model_extra:
            if deeper_than(MAX_DEPTH, self.model_extra):
                raise ApiError(400, f"The JSON is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
            try:
                json.dumps(self.model_extra, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise ValueError("a lone surrogate is not a character") from None
        return self

    def ignored(self) -> list[str]:
        """Up to 20 of the ignored fields, sorted; long names are cut so that they fit into a header."""
        known = {*WITHOUT_EFFECT, *REFUSED}
        names = {name[:40] for name in islice(self.model_extra or {}, 1000) if name not in known}
        return sorted(names)[:20]

    def refuse_unsupported(self) -> None:
        """Raise ApiError for a field that is not supported."""
        for name in REFUSED:
            if (self.model_extra or {}).get(name) not in (None, [], "none"):
                message = f"'{name}' is not supported by this server."
                raise ApiError(400, message, param=name, code="unsupported_parameter")


def deeper_than(depth: int, value: Any) -> bool:
    """Whether lists and objects are nested more than `depth` levels deep."""
    level = [value]
    for _ in range(depth):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [item for items in children for item in items if isinstance(item, dict | list)]
    return bool(level)


class StreamOptions(RequestBody):
    include_usage: bool | None = None


class SamplingRequest(RequestBody):
    """The fields that chat and plain completions share."""

    model: AnyText
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Int64 | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def options_belong_to_streams(self) -> "SamplingRequest":
        if self.stream_options and not self.stream:
            raise ValueError("stream_options may only be given with stream: true")
        return self

    @property
    def characters(self) -> int:
        """The length of the request's text. An id counts as much as a token usually has."""
        raise NotImplementedError

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(SamplingRequest):
    prompt: AnyText | Texts | Ids | Many | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def enough_candidates(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("best_of must be at least n")
        if self.best_of is not None and self.best_of > 1 and self.stream:
            raise ValueError("best_of above 1 cannot be streamed")
        return self

    @property
    def characters(self) -> int:
        prompts: list[Any] = self.prompt if isinstance(self.prompt, list) else [self.prompt or ""]
        sizes = (len(p) if isinstance(p, str) else 4 * (len(p) if isinstance(p, list) else 1) for p in prompts)
        return sum(sizes)


class Part(RequestBody):
    type: AnyText
    text: AnyText | None = None


class ChatTurn(RequestBody):
    role: Literal["system", "developer", "user", "assistant"]
    content: AnyText | Annotated[list[Part], Field(min_length=1, fail_fast=True)] | None = None

    @field_validator("content")
    @classmethod
    def only_text(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else []:
            if part.type != "text" or part.text is None:
                raise ValueError(f"parts of type '{part.type}' are not supported, only text is")
        return content

    def message(self) -> dict[str, str]:
        """The turn as a message for the chat template. The role developer means system."""
        content = self.content or ""
        if isinstance(content, list):
            content = "".join(part.text or "" for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


def few_parts(messages: Any) -> Any:
    """Refuse a conversation of too many parts before each of them is read."""
    turns = messages if isinstance(messages, list) else []
    contents = (turn.get("content") for turn in turns if isinstance(turn, dict))
    if sum(len(content) for content in contents if isinstance(content, list)) > MAX_PARTS:
        raise ValueError(f"the contents should have at most {MAX_PARTS} parts in all")
    return messages


Turns = Annotated[
    list[ChatTurn],
    Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
    BeforeValidator(few_parts),
]


class ResponseFormat(RequestBody):
    type: Literal["text", "json_object", "json_schema"]


class ChatRequest(SamplingRequest):
    messages: Turns
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    response_format: ResponseFormat | None = None
    modalities: list[AnyText] | None = None

    @model_validator(mode="after")
    def alternatives_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs may only be given with logprobs: true")
        return self

    @property
    def characters(self) -> int:
        return sum(len(turn.message()["content"]) for turn in self.messages)

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.response_format and self.response_format.type != "text":
            message = f"response_format '{self.response_format.type}' is not supported; only 'text' is."
            raise ApiError(400, message, param="response_format", code="unsupported_value")
        if self.modalities not in (None, ["text"]):
            raise ApiError(400, "This server generates only text.", param="modalities", code="unsupported_value")


class ScoreRequest(RequestBody):
    model: AnyText
    input: Annotated[list[Turns], Field(min_length=1, max_length=256, fail_fast=True)]


class ModerationRequest(RequestBody):
    model: AnyText | None = None
    input: AnyText | Annotated[list[AnyText | Part], Field(min_length=1, max_length=256, fail_fast=True)]


class MetadataUpdate(RequestBody):
    metadata: Metadata | None


class LoadRequest(RequestBody):
    run: Text
    """A run directory, or NAME=RUN."""


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: ErrorBody


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request is invalid or not allowed."},
    "5XX": {"model": ErrorResponse, "description": "The server cannot serve the request at the moment."},
}
