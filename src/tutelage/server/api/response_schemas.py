"""The request body of POST /v1/responses, and the chat request that it amounts to. Rules as in `schemas.py`.

body, items of earlier responses -> ResponseRequest.chat() -> ChatRequest
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationError

from tutelage.server.api.chat_schemas import MAX_TOOLS, ChatRequest, few_parts, need, only_functions
from tutelage.server.api.response_input import InputItem, turns_of
from tutelage.server.api.schemas import MAX_MESSAGES, WITHOUT_EFFECT, AnyText, Metadata, RequestBody, SamplingRequest
from tutelage.web.errors import ApiError, validation_error

LOGPROBS = "message.output_text.logprobs"  # in `include`
Items = Annotated[list[InputItem], Field(max_length=MAX_MESSAGES, fail_fast=True), BeforeValidator(few_parts)]
SHARED = set(SamplingRequest.model_fields) - {"stream", "stream_options"} | {"parallel_tool_calls", "top_logprobs"}


class ResponseTool(RequestBody):
    """A function that the model may call."""

    type: AnyText
    name: AnyText | None = None
    description: AnyText | None = None
    parameters: dict[AnyText, Any] | None = None
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """The tool in the form of chat completions."""
        return {"type": self.type, "function": self.model_dump(exclude={"type"}, exclude_none=True)}

    @property
    def sent(self) -> dict[str, Any]:
        """The tool in the response, which has all fields."""
        return self.model_dump(mode="json")


class ResponseToolChoice(RequestBody):
    type: AnyText
    name: AnyText | None = None


class TextFormat(RequestBody):
    type: Literal["text", "json_object", "json_schema"]
    name: AnyText | None = None
    description: AnyText | None = None
    schema_: dict[AnyText, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseText(RequestBody):
    format: TextFormat | None = None


class ResponseRequest(SamplingRequest):
    without_effect: ClassVar[set[str]] = WITHOUT_EFFECT | {"reasoning", "max_tool_calls"}
    refused: ClassVar[list[str]] = "background conversation prompt context_management functions".split()

    input: AnyText | Items | None = None
    instructions: AnyText | None = None
    previous_response_id: AnyText | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Literal[1] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[AnyText], Field(max_length=64, fail_fast=True)] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    text: ResponseText | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @property
    def items(self) -> list[InputItem]:
        """The input as items."""
        if isinstance(self.input, str):
            return [InputItem(type="message", role="user", content=self.input)]
        return self.input or []

    @property
    def format_sent(self) -> dict[str, Any]:
        """The format of the text, as the response repeats it."""
        wanted = self.text.format if self.text else None
        return wanted.model_dump(mode="json", exclude_none=True) if wanted else {"type": "text"}

    @property
    def choice_sent(self) -> Any:
        """The tool choice, as the response repeats it."""
        choice = self.tool_choice or "auto"
        return choice if isinstance(choice, str) else choice.model_dump(mode="json", exclude_none=True)

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or [])

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.truncation == "auto":
            message = "truncation 'auto' is not supported by this server; shorten the input."
            raise ApiError(400, message, param="truncation", code="unsupported_value")
        for index, tool in enumerate(self.tools or []):
            only_functions(tool.type, tool.name, f"tools.{index}", "name")
        if isinstance(self.tool_choice, ResponseToolChoice):
            only_functions(self.tool_choice.type, self.tool_choice.name, "tool_choice", "name")
        wanted = self.text.format if self.text else None
        if wanted and wanted.type == "json_schema":
            for name in ("name", "schema"):
                need(getattr(wanted, "schema_" if name == "schema" else name), f"text.format.{name}")

    def chat(self, earlier: Sequence[InputItem]) -> ChatRequest:
        """The chat request that this amounts to, after the items of earlier responses. Raises ApiError."""
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        fields = self.model_dump(include=SHARED, exclude_none=True)
        fields |= {"messages": [*system, *turns_of(earlier), *turns_of(self.items)]}
        fields |= {"logprobs": True} if self.wants_logprobs else {}
        fields |= {"max_completion_tokens": self.max_output_tokens, "response_format": self._format()}
        fields |= {"tools": [tool.for_chat() for tool in self.tools or []], "tool_choice": self._choice()}
        try:
            return ChatRequest.model_validate(fields)
        except ValidationError as error:
            raise in_terms_of_responses(
                validation_error([e | {"loc": ("body", *e["loc"])} for e in error.errors()])
            ) from None

    def _format(self) -> dict[str, Any] | None:
        wanted = self.text.format if self.text else None
        if wanted is None or wanted.type != "json_schema":
            return {"type": wanted.type} if wanted else None
        return {"type": wanted.type, "json_schema": wanted.model_dump(exclude={"type"}, exclude_none=True)}

    def _choice(self) -> Any:
        if isinstance(self.tool_choice, ResponseToolChoice):
            return {"type": self.tool_choice.type, "function": {"name": self.tool_choice.name or ""}}
        return self.tool_choice


def in_terms_of_responses(error: ApiError) -> ApiError:
    """An error about a chat request, with the names that the fields have in the Responses API."""
    if param := error.body["param"]:
        named = re.sub(r"^messages(\.\d+)?", "input", param).replace("response_format.json_schema", "text.format")
        named = named.replace("response_format", "text.format").replace(".function", "")
        message = str(error.body["message"]).replace(f"'{param}'", f"'{named}'")
        error.body |= {"param": named, "message": message}
    return error
