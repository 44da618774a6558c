"""Request bodies of the API: the supported fields of OpenAI's API, strictly validated.

Fields in WITHOUT_EFFECT are accepted silently. Fields in REFUSED would change the response and are not supported, so
they are refused by name. All other unknown fields are ignored and listed in the response's header `x-ignored-params`.
`top_k`, `min_p` and `repetition_penalty` are our additions; OpenAI's clients send them through `extra_body`.
"""

import json
from functools import partial
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tutelage.web.envelope import BODY_BYTES
from tutelage.web.errors import ApiError

MAX_CHOICES = 16
MAX_MESSAGES = 2000
MAX_PARTS = 10_000
MAX_STOPS = 16  # OpenAI allows 4, but tasks of lm-eval have more
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


# pydantic finds lone surrogates, which UTF-8 cannot encode, only in texts with a limit. Bodies have at most so much.
AnyText = Annotated[str, Field(max_length=BODY_BYTES)]
Text = Annotated[str, Field(min_length=1)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]  # compared with the end of the answer at each token
Stop = StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS, fail_fast=True)] | None
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

    without_effect: ClassVar[set[str]] = WITHOUT_EFFECT
    refused: ClassVar[list[str]] = REFUSED
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, serialize_by_alias=True)

    @model_validator(mode="after")
    def ignored_are_shallow_text(self) -> "RequestBody":
        """Refuse unknown fields that are nested too deeply, or contain a lone surrogate (which UTF-8 cannot encode).

        The known fields have their shapes, and pydantic checks their texts.
        """
        if self.model_extra:
            shallow_text(self.model_extra)
        return self

    def ignored(self) -> list[str]:
        """Up to 20 of the ignored fields, sorted; long names are cut so that they fit into a header."""
        known = {*self.without_effect, *self.refused}
        names = {name[:40] for name in islice(self.model_extra or {}, 1000) if name not in known}
        return sorted(names)[:20]

    def refuse_unsupported(self) -> None:
        """Raise ApiError for a field that is not supported."""
        for name in self.refused:
            if (self.model_extra or {}).get(name) not in (None, [], "none", False):
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


def shallow_text(value: Any) -> Any:
    """A part of a body that may have any shape. Refuses deep nesting and lone surrogates, which UTF-8 lacks."""
    if deeper_than(MAX_DEPTH, value):
        raise ApiError(400, f"The JSON is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate is not a character") from None
    return value


class NamedSchema(RequestBody):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: AnyText | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(shallow_text)] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def a_schema_is_given(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self


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
