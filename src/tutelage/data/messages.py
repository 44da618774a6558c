"""The messages of a conversation in the formats that people have, as our own.

OpenAI's {"role", "content"} with text or text parts, ShareGPT's {"from", "value"} -> [{"role", "content": text}]
"""

import json
from typing import Any

from tutelage.data.fields import check_text, kind_of, text_field
from tutelage.errors import InputError

Messages = list[dict[str, str]]  # {"role": "system" | "user" | "assistant", "content": str}

ROLES = ("system", "user", "assistant")
_SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def messages_field(record: dict[str, Any], name: str, where: str) -> Messages:
    """The messages of a field. Raises InputError unless there is at least one."""
    messages = record.get(name)
    if not isinstance(messages, list) or not messages:
        raise InputError(f'{where}: "{name}" must be a list of at least one message, but it is {kind_of(messages)}')
    return [message_in(message, f"{where}, message {turn}") for turn, message in enumerate(messages, start=1)]


def message_in(message: Any, spot: str) -> dict[str, str]:
    """Check one message. `spot` (file, line and number of the message) starts the error."""
    if not isinstance(message, dict):
        raise InputError(f'{spot}: must be an object with "role" and "content", but it is {kind_of(message)}')
    if "from" in message and "role" not in message:
        role = _SHAREGPT.get(message["from"]) if isinstance(message["from"], str) else None
        if role is None:
            raise InputError(f'{spot}: "from" must be human, gpt or system, but it is {json.dumps(message["from"])}')
        return {"role": role, "content": content_text(message.get("value"), "value", spot)}
    role = "system" if message.get("role") == "developer" else message.get("role")  # OpenAI's newer name
    if role not in ROLES:
        raise InputError(f'{spot}: "role" must be one of {", ".join(ROLES)}, but it is {json.dumps(role)}')
    return {"role": role, "content": content_text(message.get("content"), "content", spot)}


def content_text(content: Any, name: str, spot: str) -> str:
    """The text of a content: a string, or OpenAI's list of text parts, which are joined. Other parts are refused."""
    if is_parts(content):
        return "".join(_part_text(part, f"{spot}, part {i}") for i, part in enumerate(content, start=1))
    if not isinstance(content, str):
        raise InputError(f'{spot}: "{name}" must be a string, but it is {kind_of(content)}')
    return check_text(content, spot)


def is_parts(value: Any) -> bool:
    """Whether a list holds content parts, not messages."""
    return isinstance(value, list) and any(
        isinstance(one, dict) and "type" in one and "role" not in one for one in value
    )


def stripped(messages: Messages) -> Messages:
    """The messages without the white space around them, for comparing."""
    return [{"role": message["role"], "content": message["content"].strip()} for message in messages]


def _part_text(part: Any, spot: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise InputError(f'{spot}: must be an object with "type" and "text", but it is {kind_of(part)}')
    if part["type"] != "text":
        raise InputError(f'{spot}: content of type "{part["type"]}" cannot be read, only text; remove this record')
    return text_field(part, "text", spot)
