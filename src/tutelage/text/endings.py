"""How a chat template frames a turn, and which tokens end an answer: found by rendering a short conversation.

Template, added tokens -> Framing: the token after an answer, the tokens around turns
model folder           -> ids that generation_config.json or config.json name as ends
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import InputError
from tutelage.json_file import LARGEST, check_fields, either, listed, optional, read_object, whole
from tutelage.text.control import THINK, any_of
from tutelage.text.template import Message, Template, without_marks

ID = whole(-LARGEST)  # some folders have -1 for none

# Words that no template contains, so that they can be found again.
SYSTEM: Message = {"role": "system", "content": "zyxsystem"}
QUESTION: Message = {"role": "user", "content": "zyxquestion"}
ANSWER: Message = {"role": "assistant", "content": "zyxanswer"}


@dataclass(frozen=True)
class Framing:
    """What a template writes around the contents of a conversation."""

    end_of_turn: str | None  # the token after an answer; None if no token follows it
    tokens: frozenset[str]  # added tokens with which the template separates turns; users must not write them


def framing(template: Template, added: Collection[str]) -> Framing:
    """Raises InputError if the template renders no conversation of one question, or of a question and an answer."""
    template.render([QUESTION], add_generation_prompt=True)
    answered = without_marks(template.render([QUESTION, ANSWER]))
    others = [_try(template, [QUESTION, ANSWER, QUESTION]), _try(template, [SYSTEM, QUESTION])]
    found = any_of([token for token in added if token.strip()])
    ends = (_after_answer(text, found) for text in (answered, others[0]))
    written = {match[0] for text in (answered, *others) for match in found.finditer(text)}
    end = next((token for token in ends if token), None)
    return Framing(end, frozenset(token for token in written - set(THINK) if not token.isalnum()))


def _try(template: Template, messages: list[Message]) -> str:
    """The rendering, or "" if the template refuses this kind of conversation."""
    try:
        return without_marks(template.render(messages))
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
            settings = read_object(path, "copy the model again")
            check_fields(settings, {"eos_token_id": optional(either(ID, listed(ID)))}, str(path))
            ids = settings.get("eos_token_id")
            return tuple(i for i in (ids if isinstance(ids, list) else [ids]) if i is not None)
    return ()
