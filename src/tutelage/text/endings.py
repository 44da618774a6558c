"""How a chat template frames a turn, and which tokens end an answer: found by rendering a short conversation.

Template, added tokens -> Framing: the token after an answer, the tokens around turns
model folder           -> ids that generation_config.json or config.json name as ends
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import InputError
from tutelage.text.control import THINK, any_of
from tutelage.text.template import Message, Template
from tutelage.text.trial import renderings

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
    asked, answered, *others = renderings(
        template,
        [
            ([QUESTION], True),
            ([QUESTION, ANSWER], False),
            ([QUESTION, ANSWER, QUESTION], False),
            ([SYSTEM, QUESTION], False),
        ],
    )
    if isinstance(asked, InputError):
        raise asked
    if isinstance(answered, InputError):
        raise answered
    continued, told = ("" if isinstance(text, InputError) else text for text in others)  # a template may refuse these
    found = any_of([token for token in added if token.strip()])
    ends = (_after_answer(text, found) for text in (answered, continued))
    written = {match[0] for text in (answered, continued, told) for match in found.finditer(text)}
    end = next((token for token in ends if token), None)
    return Framing(end, frozenset(token for token in written - set(THINK) if not token.isalnum()))


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
