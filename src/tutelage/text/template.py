"""Renders a conversation with a Jinja chat template, as transformers does.

    messages -> Template.render -> Rendering: text, and the parts inside {% generation %} blocks

Templates come with downloaded models, so they run in a sandbox. They find what transformers 5.23 offers them: loop
controls, `{% generation %}` blocks, `raise_exception`, `strftime_now`, `tojson` and the named special tokens.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tutelage.errors import InputError

Message = dict[str, Any]  # {"role": str, "content": str}, and whatever else a template reads
Tool = dict[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}

PRIVATE = 0xF0000  # the first character of Unicode's private plane 15
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of the field for a turn's reasoning, newest first


def unforgeable(length: int = 3) -> str:
    """Private characters that nobody can guess, so that no text contains them. They never reach a model."""
    return "".join(chr(PRIVATE + secrets.randbelow(0xFFFE)) for _ in range(length))


BEGIN, END = unforgeable(), unforgeable()  # around the output of a {% generation %} block


def without_marks(rendered: str) -> str:
    """A rendered text without BEGIN and END."""
    return rendered.replace(BEGIN, "").replace(END, "")


@dataclass(frozen=True)
class Rendering:
    """The text of a conversation."""

    text: str
    generated: tuple[tuple[int, int], ...]  # spans of the {% generation %} blocks in `text`
    cuts: tuple[int, ...]  # positions in `text` that the caller asked for


@dataclass(frozen=True)
class Template:
    """A Jinja chat template and the special tokens it may refer to."""

    text: str
    specials: tuple[tuple[str, str], ...]  # (name in the template, token)

    @property
    def marks_answers(self) -> bool:
        """Whether {% generation %} blocks say which part of a conversation the assistant wrote."""
        return re.search(r"\{%[-+]?\s*generation\b", self.text) is not None

    @property
    def knows_tools(self) -> bool:
        """Whether the template reads the variable `tools`."""
        return _knows_tools(self.text)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        tools: Sequence[Tool] | None = None,
    ) -> str:
        """The text, with BEGIN and END around each {% generation %} block. Messages are as `as_templates_read` gives.

        Raises InputError if the template is broken or refuses the conversation.
        """
        variables = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": list(tools) if tools else None,
            "documents": None,
        }
        try:
            return str(_compiled(self.text).render(**dict(self.specials), **variables))
        except Exception as error:  # a template can raise whatever Python can
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise InputError(f"chat template: {_one_line(error)}; the conversation's roles are {roles}") from None


def as_templates_read(message: Mapping[str, Any]) -> Message:
    """Without fields that are None, and with the reasoning under the names that templates use."""
    fields = {name: value for name, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in REASONING if name in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _one_line(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    return (" ".join(str(error).split()) or type(error).__name__) + (f" (line {line})" if line else "")


class _Generation(Extension):
    """{% generation %}...{% endgeneration %}: what the assistant wrote."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in (BEGIN, END))
        return nodes.Scope([begin, *body, end]).set_lineno(line)


@lru_cache(maxsize=16)
def _knows_tools(template: str) -> bool:
    return "tools" in meta.find_undeclared_variables(_environment().parse(template))


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
