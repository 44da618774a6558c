"""Request bodies that contain conversations: chat completions and scores. Rules as in `schemas.py`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from tutelage.server.api.schemas import (
    MAX_MESSAGES,
    MAX_PARTS,
    AnyText,
    Metadata,
    Part,
    RequestBody,
    ResponseFormat,
    SamplingRequest,
    Text,
    shallow_text,
)
from tutelage.text.template import Message, Tool
from tutelage.web.errors import ApiError

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionCall(RequestBody):
    name: Text
    arguments: AnyText = "{}"


class ToolCall(RequestBody):
    """A call in an earlier answer."""

    id: AnyText | None = None
    type: Literal["function"] | None = None
    function: FunctionCall

    def message(self) -> dict[str, Any]:
        """The call in OpenAI's form."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return ({} if self.id is None else {"id": self.id}) | {"type": "function", "function": function}


class ChatTurn(RequestBody):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: AnyText | Annotated[list[Part], Field(min_length=1, fail_fast=True)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_call_id: AnyText | None = None
    name: AnyText | None = None
    reasoning_content: AnyText | None = None
    reasoning: AnyText | None = None  # what other servers call it

    @field_validator("content")
    @classmethod
    def only_text(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else []:
            if part.type != "text" or part.text is None:
                raise ValueError(f"parts of type '{part.type}' are not supported, only text is")
        return content

    def message(self) -> Message:
        """The turn as a message for the chat template. The role developer means system."""
        content = self.content or ""
        if isinstance(content, list):
            content = "".join(part.text or "" for part in content)
        message: Message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        more: dict[str, Any] = {}
        if self.role == "assistant":
            calls = [call.message() for call in self.tool_calls or []]
            more = {"reasoning_content": self.reasoning_content or self.reasoning, "tool_calls": calls or None}
        elif self.role == "tool":
            more = {"tool_call_id": self.tool_call_id, "name": self.name}
        return message | {name: value for name, value in more.items() if value is not None}


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


class Function(RequestBody):
    name: FunctionName
    description: AnyText | None = None
    parameters: Annotated[dict[AnyText, Any], AfterValidator(shallow_text)] | None = None
    strict: bool | None = None


class FunctionTool(RequestBody):
    """A function that the model may call."""

    type: AnyText
    function: Function | None = None
    _sent: Tool = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def keep_as_sent(cls, data: Any, handler: Any) -> "FunctionTool":
        """Keep the object as it was sent: the chat template writes it, so the order of its fields matters."""
        tool: FunctionTool = handler(data)
        tool._sent = data if isinstance(data, dict) else tool.model_dump(exclude_unset=True)
        return tool

    @property
    def sent(self) -> Tool:
        return self._sent


class ChosenFunction(RequestBody):
    name: AnyText


class FunctionChoice(RequestBody):
    """The one function that the model must call."""

    type: AnyText
    function: ChosenFunction | None = None


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
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def alternatives_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs may only be given with logprobs: true")
        return self

    @property
    def characters(self) -> int:
        texts = [str(value) for turn in self.messages for value in turn.message().values()]
        return sum(map(len, texts)) + sum(len(str(tool.sent)) for tool in self.offered)

    @property
    def offered(self) -> list[FunctionTool]:
        """The functions that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def must_call(self) -> bool:
        """Whether the answer must be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, FunctionChoice)

    @property
    def several(self) -> bool:
        """Whether an answer may have more than one call."""
        return self.parallel_tool_calls is not False and not isinstance(self.tool_choice, FunctionChoice)

    @property
    def callable(self) -> list[Function]:
        """The functions that this answer may call: all that are offered, or the chosen one."""
        chosen = self.tool_choice.function if isinstance(self.tool_choice, FunctionChoice) else None
        functions = [tool.function for tool in self.offered if tool.function]
        return [function for function in functions if chosen is None or function.name == chosen.name]

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.modalities not in (None, ["text"]):
            raise ApiError(400, "This server generates only text.", param="modalities", code="unsupported_value")
        for index, tool in enumerate(self.tools or []):
            only_functions(tool.type, tool.function, f"tools.{index}", "function")
        if isinstance(self.tool_choice, FunctionChoice):
            only_functions(self.tool_choice.type, self.tool_choice.function, "tool_choice", "function")
        if self.must_call and not self.callable:
            message = "tool_choice demands a call, but the function is not among 'tools'."
            raise ApiError(400, message, param="tool_choice", code="invalid_value")


def only_functions(kind: str, function: Any, param: str, field: str) -> None:
    """Raises ApiError for a tool, or the choice of one, that is not a function, or lacks its field."""
    if kind != "function":
        message = f"Tools of type '{kind}' are not supported by this server; only 'function' is."
        raise ApiError(400, message, param=param, code="unsupported_value")
    need(function, f"{param}.{field}")


def need(value: Any, param: str) -> None:
    """Raises ApiError if a field that others make necessary is missing."""
    if value is None:
        message = f"Missing required parameter: '{param}'."
        raise ApiError(400, message, param=param, code="missing_required_parameter")


class ScoreRequest(RequestBody):
    model: AnyText
    input: Annotated[list[Turns], Field(min_length=1, max_length=256, fail_fast=True)]
