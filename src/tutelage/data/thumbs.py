"""Thumbs on responses in the shapes of other tools -> a prompt, a response and 1 or -1.

    "thumb" | TRL's "label" | LLaMA-Factory's "kto_tag", with a prompt and a response or a whole conversation

A pair is two thumbs, as TRL reads pairs for KTO: the chosen response has one up and the rejected one down.
"""

import json
from typing import Any

from tutelage.data.conversations import conversation_in, prompt_messages
from tutelage.data.messages import content_text
from tutelage.data.pairs import is_pair, pair_fields
from tutelage.errors import InputError


def thumb_fields(record: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The fields `prompt`, `response` and `thumb` of each thumb in a record; none for a pair of equal responses."""
    if is_pair(record):
        pair = pair_fields(record, where)
        tied = len(set(pair["ranks"])) == 1
        thumbs = [] if tied else zip(pair["responses"], (1, -1), strict=True)
        return [{"prompt": pair["prompt"], "response": response, "thumb": thumb} for response, thumb in thumbs]
    if record.get("response") is not None or record.get("thumb") is not None:
        prompt = prompt_messages(record, "prompt", where)
        response = content_text(record.get("response"), "response", where)
    else:
        *prompt, last = conversation_in(record, where)
        if last["role"] != "assistant":
            raise InputError(f"{where}: the conversation ends with a {last['role']} turn; end it with the response")
        response = last["content"]
    return [{"prompt": prompt, "response": response, "thumb": _thumb(record, where)}]


def _thumb(record: dict[str, Any], where: str) -> int:
    name = next((n for n in ("label", "kto_tag") if record.get("thumb") is None and record.get(n) is not None), None)
    if name:
        if record[name] not in (True, False):  # 1 and 0 equal these
            raise InputError(f'{where}: "{name}" must be true or false, but it is {json.dumps(record[name])}')
        return 1 if record[name] else -1
    thumb = record.get("thumb")
    if type(thumb) is not int or thumb not in (1, -1):
        raise InputError(f'{where}: "thumb" must be 1 (up) or -1 (down), but it is {json.dumps(thumb)}')
    return thumb
