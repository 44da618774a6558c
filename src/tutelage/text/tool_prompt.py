"""Functions, calls and results in a conversation, as its chat template takes them.

messages and tools in OpenAI's form -> messages and tools for the template

A template that knows tools gets them as `apply_chat_template` of transformers does: arguments as objects, and the
function's name with each result. For any other template the system turn describes the functions, and calls and results
are written as text in the assistant's and the user's turns, in Hermes' syntax (`tool_syntax.py`).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tutelage.errors import InputError
from tutelage.text.endings import QUESTION, SYSTEM
from tutelage.text.template import Message, Template, Tool
from tutelage.text.tool_json import as_json
from tutelage.text.tool_syntax import HERMES, MISTRAL

DESCRIPTION = """You can call functions. Each line below describes one as JSON:
<tools>
{tools}
</tools>
To call a function, write a JSON object with its name and its arguments between these marks. Write one pair of marks \
for each call.
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument's name": "its value"}}}}
</tool_call>
What the functions return comes in the next message, between <tool_response> marks."""

Messages = Sequence[Mapping[str, Any]]


def as_template_takes(
    template: Template, messages: Messages, tools: Sequence[Tool] | None = None
) -> tuple[Messages, Sequence[Tool] | None]:
    """The messages and the tools to render. A conversation without tools is returned as it is."""
    if not tools and not any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
        return messages, None
    if template.knows_tools:
        return _for_template(messages, short_ids=MISTRAL.begin in template.text), tools
    return _written_out(messages, tools or (), _takes_system(template)), None


def _for_template(messages: Messages, short_ids: bool) -> list[Message]:
    """The messages in the form of transformers."""
    names: dict[str, str] = {}  # of the functions, by the ids of the calls
    turns: list[Message] = []
    for message in messages:
        turn = dict(message)
        if calls := _calls(message):
            turn |= {"content": message.get("content") or "", "tool_calls": [_call(call, short_ids) for call in calls]}
            names |= {call["id"]: call["function"]["name"] for call in calls if "id" in call}
        elif message["role"] == "tool" and (call_id := message.get("tool_call_id")) is not None:
            turn["tool_call_id"] = _short(call_id) if short_ids else call_id
            turn.setdefault("name", names.get(call_id))
        turns.append(turn)
    return turns


def _calls(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    return message.get("tool_calls") or [] if message["role"] == "assistant" else []


def _call(call: dict[str, Any], short_ids: bool) -> dict[str, Any]:
    function = call["function"] | {"arguments": _arguments(call)}
    return call | {"function": function} | ({"id": _short(call["id"])} if short_ids and "id" in call else {})


def _arguments(call: dict[str, Any]) -> Any:
    """A call's arguments as an object; as they are if they are not the JSON of one."""
    arguments = call["function"].get("arguments")
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments
    return read if isinstance(read, dict) else arguments


def _short(call_id: str) -> str:
    """The id of a call as Mistral's templates demand it: nine letters and digits."""
    return call_id if re.fullmatch("[A-Za-z0-9]{9}", call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _written_out(messages: Messages, tools: Sequence[Tool], takes_system: bool) -> list[Message]:
    """The messages with functions, calls and results as text. Results and the question after them are one turn."""
    names: dict[str, str] = {}
    turns: list[Message] = []
    after_result = False
    for message in messages:
        calls = _calls(message)
        names |= {call["id"]: call["function"]["name"] for call in calls if "id" in call}
        turn = _as_text(message, calls, names)
        if after_result and turn["role"] == "user":
            turns[-1]["content"] += "\n" + turn["content"]
        else:
            turns.append(turn)
        after_result = message["role"] == "tool"
    return _with_description(turns, tools, takes_system) if tools else turns


def _as_text(message: Mapping[str, Any], calls: Sequence[dict[str, Any]], names: Mapping[str, str]) -> Message:
    """A turn with its calls, or its result, as text."""
    content = message.get("content") or ""
    if message["role"] == "tool":
        name = message.get("name") or names.get(message.get("tool_call_id", ""))
        result = {"name": name, "content": content} if name else {"content": content}
        inner = as_json(result).replace("</", "<\\/")  # so that no result contains the mark that ends it
        return {"role": "user", "content": f"<tool_response>\n{inner}\n</tool_response>"}
    written = [f"{HERMES.begin}\n{as_json(_plain(call))}\n{HERMES.end}" for call in calls]
    fields = {name: value for name, value in message.items() if name != "tool_calls"}
    return fields | {"content": "\n".join([content, *written] if content else written)}


def _plain(call: dict[str, Any]) -> dict[str, Any]:
    return {"name": call["function"]["name"], "arguments": _arguments(call)}


def _with_description(turns: list[Message], tools: Sequence[Tool], takes_system: bool) -> list[Message]:
    """The turns with the description of the functions at the end of the system turn.

    With a template that takes no system turn it stands at the beginning of the first turn.
    """
    functions = [{key: value for key, value in tool["function"].items() if key != "strict"} for tool in tools]
    description = DESCRIPTION.format(tools="\n".join(map(as_json, functions)))
    if turns and turns[0]["role"] == "system":
        return [turns[0] | {"content": f"{turns[0]['content']}\n\n{description}"}, *turns[1:]]
    if takes_system or not turns:
        return [{"role": "system", "content": description}, *turns]
    return [turns[0] | {"content": f"{description}\n\n{turns[0]['content']}"}, *turns[1:]]


@lru_cache(maxsize=16)
def _takes_system(template: Template) -> bool:
    """Whether the template renders a system turn."""
    try:
        return SYSTEM["content"] in template.render([SYSTEM, QUESTION])
    except InputError:
        return False
