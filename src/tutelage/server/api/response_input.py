"""The input items of the Responses API as turns of a chat.

[InputItem: message, reasoning, function_call, function_call_output] -> [{"role", "content", ...}]

What the assistant wrote between two other items is one turn: its reasoning, its text and its calls. A second text
begins a turn of its own.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.server.api.schemas import AnyText, RequestBody
from tutelage.web.errors import ApiError

TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
Turn = dict[str, Any]


class InputPart(RequestBody):
    type: AnyText
    text: AnyText | None = None
    refusal: AnyText | None = None


Parts = AnyText | Annotated[list[InputPart], Field(fail_fast=True)] | None


class InputItem(RequestBody):
    """One item. Which fields it needs depends on its type; without a type it is a message."""

    type: AnyText | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts = None
    call_id: AnyText | None = None
    name: AnyText | None = None
    arguments: AnyText | None = None
    output: Parts = None
    summary: Parts = None

    def text(self, field: Literal["content", "output", "summary"], at: str) -> str:
        """The text of a field. Raises ApiError for parts that are not text."""
        parts: Parts = getattr(self, field)
        if parts is None or isinstance(parts, str):
            return parts or ""
        for index, part in enumerate(parts):
            if part.type not in (*TEXTS, "refusal"):
                message = f"Parts of type '{part.type}' are not supported by this server; only text is."
                raise ApiError(400, message, param=f"{at}.{field}.{index}.type", code="unsupported_value")
        return "".join(part.text or part.refusal or "" for part in parts)

    def need(self, field: str, at: str) -> str:
        """A field that the item's type needs."""
        value = getattr(self, field)
        if value is None:
            message = f"Missing required parameter: '{at}.{field}'."
            raise ApiError(400, message, param=f"{at}.{field}", code="missing_required_parameter")
        return str(value)


def turns_of(items: Sequence[InputItem]) -> list[Turn]:
    """The turns of these items. Raises ApiError, naming the item, for one that is not supported."""
    turns: list[Turn] = []
    for index, item in enumerate(items):
        kind, at = item.type or "message", f"input.{index}"
        if kind == "function_call_output":
            item.need("output", at)
            turns.append({"role": "tool", "tool_call_id": item.need("call_id", at), "content": item.text("output", at)})
        elif kind == "message" and item.need("role", at) != "assistant":
            turns.append({"role": item.role, "content": item.text("content", at)})
        else:
            _add_written(turns, item, kind, at)
    return turns


def _add_written(turns: list[Turn], item: InputItem, kind: str, at: str) -> None:
    """Add what the assistant wrote to its turn."""
    if kind not in ("message", "reasoning", "function_call"):
        message = f"Items of type '{kind}' are not supported by this server."
        raise ApiError(400, message, param=f"{at}.type", code="unsupported_value")
    last = turns[-1] if turns and turns[-1]["role"] == "assistant" else {}
    begun = bool(last) and (last["content"] is not None or "tool_calls" in last)
    if not last or (begun and kind != "function_call"):
        last = {"role": "assistant", "content": None}
        turns.append(last)
    if kind == "message":
        last["content"] = item.text("content", at)
    elif kind == "reasoning":
        last["reasoning_content"] = item.text("content", at) or item.text("summary", at)
    else:
        function = {"name": item.need("name", at), "arguments": item.arguments or "{}"}
        call = {"id": item.need("call_id", at), "type": "function", "function": function}
        last.setdefault("tool_calls", []).append(call)
