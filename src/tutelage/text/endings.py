"""How a chat template frames a turn, and which tokens end an answer: found by rendering a short conversation.

Template, added tokens -> Framing: the token after an answer, the tokens around turns
model folder           -> ids that generation_config.json or config.json name as ends
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import InputError
from tutelage.json_file import read_object
from tutelage.kinds import LARGEST, check_fields, either, listed, optional, whole
from tutelage.text.control import THINK, any_of
from tutelage.text.template import Message, Template, Tool
from tutelage.text.trial import renderings

ID = whole(-LARGEST)  # some folders have -1 for none

# Words that no template contains, so that they can be found again.
SYSTEM: Message = {"role": "system", "content": "zyxsystem"}
QUESTION: Message = {"role": "user", "content": "zyxquestion"}
ANSWER: Message = {"role": "assistant", "content": "zyxanswer"}
TOOL: Tool = {"type": "function", "function": {"name": "zyxtool", "description": "", "parameters": {"type": "object"}}}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "zyxcallid", "type": "function", "function": {"name": "zyxtool", "arguments": {}}}],
}
RESULT: Message = {"role": "tool", "name": "zyxtool", "tool_call_id": "zyxcallid", "content": "zyxresult"}


@dataclass(frozen=True)
class Framing:
    """What a template writes around the contents of a conversation."""

    end_of_turn: str | None  # the token after an answer; None if no token follows it
    tokens: frozenset[str]  # added tokens with which the template separates turns; users must not write them
    tool_tokens: frozenset[str]  # other added tokens around descriptions of functions, calls and results


def framing(template: Template, added: Collection[str]) -> Framing:
    """Raises InputError if the template renders no conversation of one question, or of a question and an answer."""
    asked, answered, *others = renderings(
        template,
        [
            ([QUESTION], True, None),
            ([QUESTION, ANSWER], False, None),
            ([QUESTION, ANSWER, QUESTION], False, None),
            ([SYSTEM, QUESTION], False, None),
            ([QUESTION, CALL, RESULT], False, [TOOL]),
        ],
    )
    if isinstance(asked, InputError):
        raise asked
    if isinstance(answered, InputError):
        raise answered
    # A template may refuse these.
    continued, told, called = ("" if isinstance(text, InputError) else text for text in others)
    found = any_of([token for token in added if token.strip()])
    ends = (_after_answer(text, found) for text in (answered, continued))
    end = next((token for token in ends if token), None)
    tokens = _written([answered, continued, told], found)
    with_tools = [called] if template.knows_tools else []
    return Framing(end, tokens, _written(with_tools, found) - tokens)


def _written(texts: Collection[str], tokens: re.Pattern[str]) -> frozenset[str]:
    """The tokens in rendered conversations, without <think> marks and words."""
    written = {match[0] for text in texts for match in tokens.finditer(text)}
    return frozenset(token for token in written - set(THINK) if not token.isalnum())


def _after_answer(text: str, tokens: re.Pattern[str]) -> str | None:
    """The token that follows the answer, with nothing but white space between them."""
    _, answer, rest = text.rpartition(ANSWER["content"])
    match = tokens.match(rest.lstrip()) if answer else None
    return match[0] if match else None


def declared_ends(folder: Path) -> tuple[int, ...]:
    """The ids that end a text according to generation_config.json or, without that file, config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            settings = read_object(path, "copy the model again")
            check_fields(settings, {"eos_token_id": optional(either(ID, listed(ID)))}, str(path))
            ids = settings.get("eos_token_id")
            return tuple(i for i in (ids if isinstance(ids, list) else [ids]) if i is not None)
    return ()
