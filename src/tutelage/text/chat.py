"""Messages -> token ids and a mask of the assistant's tokens, for any prefix-stable chat template.

    messages -> encode_chat -> ids, supervised

The tokenizer's Jinja template is rendered with a placeholder for the content of each message. The template's own text
is encoded with special tokens, and message contents without. So nobody can forge a role by typing its marker.
The assistant's tokens are found by comparing two renderings: the conversation up to the generation prompt, and the same
conversation with the answer. The difference is the answer and its end-of-turn token. Each rendering must start with the
one before; a template that rewrites earlier turns is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tutelage.errors import InputError
from tutelage.text.tokenizer import Tokenizer

Message = dict[str, str]

# U+E000 and U+E001 are private-use characters. No template contains them, and templates never see message contents.
_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Template:
    """A Jinja chat template and the special tokens it may refer to."""

    text: str
    specials: tuple[tuple[str, str], ...]  # (name in the template, token)


@dataclass(frozen=True)
class ChatIds:
    """A conversation as token ids. Both lists have one entry per token."""

    ids: list[int]
    supervised: list[bool]  # True on the assistant's content and the end-of-turn token after it


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> ChatIds:
    """Encode a conversation. Raises InputError if the template fails or is not prefix-stable."""
    ids: list[int] = []
    supervised: list[bool] = []
    template = Template(tokenizer.chat_template, tokenizer.named_specials)
    for text, learn in _segments(template, tuple(m["role"] for m in messages), add_generation_prompt):
        for token, from_template in _tokens(tokenizer, text, messages):
            ended = learn and from_template and supervised and ids[-1] == tokenizer.end_of_turn_id and supervised[-1]
            learn = learn and not ended  # some templates add a newline after the end of the turn: not supervised
            ids.append(token)
            supervised.append(learn)
    return ChatIds(ids, supervised)


@lru_cache(maxsize=4096)
def _segments(template: Template, roles: tuple[str, ...], generation_prompt: bool) -> tuple[tuple[str, bool], ...]:
    """The rendering as consecutive segments (text with placeholders, whether it is an assistant's turn)."""
    segments: list[tuple[str, bool]] = []
    done = ""
    for turn, role in enumerate(roles):
        if role != "assistant":
            continue
        for upto, prompt in ((turn, True), (turn + 1, False)):
            rendered = _render(template, roles[:upto], prompt)
            segments.append((_appended(rendered, done), not prompt))
            done = rendered
    rendered = _render(template, roles, generation_prompt)
    segments.append((_appended(rendered, done), False))
    return tuple(segments)


def _appended(rendered: str, done: str) -> str:
    """What the template appended to its previous rendering."""
    if not rendered.startswith(done):
        raise InputError(
            "chat template: adding a turn changes the text of earlier turns, so the assistant's tokens cannot be "
            "identified; use a template that only appends"
        )
    return rendered[len(done) :]


def _render(template: Template, roles: tuple[str, ...], generation_prompt: bool) -> str:
    messages = [{"role": role, "content": f"\ue000{i}\ue001"} for i, role in enumerate(roles)]
    variables = {"messages": messages, "add_generation_prompt": generation_prompt, "tools": None, "documents": None}
    try:
        return _compiled(template.text).render(**variables, **dict(template.specials))
    except TemplateError as error:
        raise InputError(f"chat template: {error}; the conversation's roles are {', '.join(roles)}") from None


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tokens(tokenizer: Tokenizer, text: str, messages: Sequence[Message]) -> list[tuple[int, bool]]:
    """Ids of one segment, each with whether it is the template's own text."""
    tokens: list[tuple[int, bool]] = []
    for i, part in enumerate(_PLACEHOLDER.split(text)):  # template, index, template, index, ...
        if i % 2:
            tokens += [(token, False) for token in tokenizer.encode(messages[int(part)]["content"])]
        else:
            tokens += [(token, True) for token in tokenizer.encode_template(part)]
    return tokens
