"""Messages to token ids with the assistant's share marked, for any prefix-stable chat template.

    messages -> encode_chat -> ids, supervised

The Jinja template of the tokenizer is rendered with a placeholder for each message's content. What the template wrote
is encoded with special tokens, what a person wrote without: nobody can forge a role by typing its marker, whatever the
template. What the assistant is trained to say is the difference between two growing prefixes: the conversation so far
with the generation prompt, and the same with the answer; it ends with the end-of-turn token. A template whose
renderings do not grow (it rewrites earlier turns) is refused.
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

# U+E000 and U+E001 are private-use characters: no template contains them, and a person's text never reaches it.
_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True)
class Template:
    """A Jinja chat template and the special tokens it may name."""

    text: str
    specials: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ChatIds:
    """A conversation in ids. Both lists have one entry per token."""

    ids: list[int]
    supervised: list[bool]  # True on the assistant's content and the end-of-turn token after it


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> ChatIds:
    """Encode a conversation. Raises InputError if the template fails or is not prefix-stable."""
    ids: list[int] = []
    supervised: list[bool] = []
    template = Template(tokenizer.chat_template, tokenizer.named_specials)
    for text, learn in _pieces(template, tuple(m["role"] for m in messages), add_generation_prompt):
        for token, from_template in _tokens(tokenizer, text, messages):
            ended = learn and from_template and supervised and ids[-1] == tokenizer.end_of_turn_id and supervised[-1]
            learn = learn and not ended  # the newline some templates put after the end of the turn is not an answer
            ids.append(token)
            supervised.append(learn)
    return ChatIds(ids, supervised)


@lru_cache(maxsize=4096)
def _pieces(template: Template, roles: tuple[str, ...], generation_prompt: bool) -> tuple[tuple[str, bool], ...]:
    """The rendering as (text with placeholders, is the assistant's own) in order."""
    pieces: list[tuple[str, bool]] = []
    done = ""
    for turn, role in enumerate(roles):
        if role != "assistant":
            continue
        for upto, prompt in ((turn, True), (turn + 1, False)):
            rendered = _render(template, roles[:upto], prompt)
            pieces.append((_grown(rendered, done), not prompt))
            done = rendered
    rendered = _render(template, roles, generation_prompt)
    pieces.append((_grown(rendered, done), False))
    return tuple(pieces)


def _grown(rendered: str, done: str) -> str:
    if not rendered.startswith(done):
        raise InputError(
            "chat template: adding a turn changes what it wrote for the turns before it, so the assistant's tokens "
            "cannot be told apart; use a template that only appends"
        )
    return rendered[len(done) :]


def _render(template: Template, roles: tuple[str, ...], generation_prompt: bool) -> str:
    messages = [{"role": role, "content": f"\ue000{i}\ue001"} for i, role in enumerate(roles)]
    try:
        return _compiled(template.text).render(
            messages=messages, add_generation_prompt=generation_prompt, tools=None, documents=None,
            **dict(template.specials),
        )  # fmt: skip
    except TemplateError as error:
        raise InputError(f"chat template: {error}; the conversation's roles are {', '.join(roles)}") from None


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda how: datetime.now().strftime(how)
    return environment.from_string(template)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tokens(tokenizer: Tokenizer, text: str, messages: Sequence[Message]) -> list[tuple[int, bool]]:
    """Ids of one piece, each with whether the template wrote it."""
    tokens: list[tuple[int, bool]] = []
    for i, part in enumerate(_PLACEHOLDER.split(text)):  # template, index, template, index, ...
        if i % 2:
            tokens += [(token, False) for token in tokenizer.encode(messages[int(part)]["content"])]
        else:
            tokens += [(token, True) for token in tokenizer.encode_template(part)]
    return tokens
