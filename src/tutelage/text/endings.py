"""How a chat template frames a turn, and which tokens end an answer: found by rendering a short conversation.

Template, added tokens -> Framing: the token after an answer, the tokens around turns
model folder           -> ids that generation_config.json or config.json name as ends
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import InputError
from tutelage.text.control import THINK, any_of
from tutelage.text.template import Message, Template, Tool, without_marks

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
    template.render([QUESTION], add_generation_prompt=True)
    answered = without_marks(template.render([QUESTION, ANSWER]))
    others = [_try(template, [QUESTION, ANSWER, QUESTION]), _try(template, [SYSTEM, QUESTION])]
    found = any_of([token for token in added if token.strip()])
    ends = (_after_answer(text, found) for text in (answered, others[0]))
    end = next((token for token in ends if token), None)
    tokens = _written([answered, *others], found)
    with_tools = [_try(template, [QUESTION, CALL, RESULT], [TOOL])] if template.knows_tools else []
    return Framing(end, tokens, _written(with_tools, found) - tokens)


def _written(texts: Collection[str], tokens: re.Pattern[str]) -> frozenset[str]:
    """The tokens in rendered conversations, without <think> marks and words."""
    written = {match[0] for text in texts for match in tokens.finditer(text)}
    return frozenset(token for token in written - set(THINK) if not token.isalnum())


def _try(template: Template, messages: list[Message], tools: Sequence[Tool] | None = None) -> str:
    """The rendering, or "" if the template refuses this kind of conversation."""
    try:
        return without_marks(template.render(messages, tools=tools))
    except InputError:
        return ""


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
            try:
                ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            except (ValueError, AttributeError) as error:
                raise InputError(f"{path}: not readable as JSON ({error}); copy the model again") from None
            return tuple(i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int)
    return ()
