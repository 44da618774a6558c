"""Encodes rendered conversations such that only the template can write a control token.

    messages -> Guard.mark -> template -> Guard.seal -> Reader.encode -> ids

Before rendering, a control token that is typed in a message is broken by a private character. After it, the control
tokens that are left are the template's own. They get private names, the breaks are removed, and a copy of the tokenizer
that knows the control tokens by these names encodes the text. Apart from what users type, the ids are those that
transformers gives for the rendered text.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tutelage.errors import InputError
from tutelage.text.template import BEGIN, END, PRIVATE, Message, Rendering, Tool, as_templates_read, unforgeable

SECRET = unforgeable()
ROLES = ("system", "user", "assistant", "developer", "tool")
THINK = ("<think>", "</think>")  # written by the models themselves, so an assistant's turn may contain them
JOINER = "\u2060"  # stays in what users type of a token that the tokenizer finds in some places only


class Guard:
    """Keeps the control tokens that users type apart from those of the template."""

    def __init__(
        self,
        control: Collection[str],
        added: Collection[str],
        ends: Collection[str],
        unread: Collection[str] = (),
        spoken: Collection[str] = (),
    ):
        """control: the tokens that only a template may write; added: all tokens that the tokenizer finds in text;
        ends: control tokens that no role may spell; unread: control tokens that it does not find everywhere; spoken:
        control tokens that an assistant's turn may contain, such as the marks of a function call."""
        self._unread = frozenset(unread)
        named = sorted({*control} - self._unread)
        self.names = {token: f"{SECRET}{chr(PRIVATE + i)}" for i, token in enumerate(named)}
        self._found = any_of({*control, *added} - self._unread)
        self._control = any_of(control)
        self._answers = any_of(set(control) - {*THINK, *spoken})
        self._prefixes = {token[:n] for token in control for n in range(1, len(token))}
        self._suffixes = {token[n:] for token in control for n in range(1, len(token))}
        self._last = {prefix[-1] for prefix in self._prefixes}
        self._first = {suffix[0] for suffix in self._suffixes}
        self._longest = max(map(len, control), default=0)
        self._ends = tuple(ends)

    def mark(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[list[Message], str]:
        """The messages with their control tokens broken, and two private characters that break them.

        The characters occur neither in the messages nor in the tools.
        """
        breaks = _unused([*messages, *(tools or ())])
        return [self._message(as_templates_read(message), breaks) for message in messages], breaks

    def mark_tools(self, tools: Sequence[Tool], breaks: str) -> list[Tool]:
        """Descriptions of functions with their control tokens broken."""
        return [self._broken(tool, breaks, self._control) for tool in tools]

    def _message(self, message: Message, breaks: str) -> Message:
        control = self._answers if message.get("role") == "assistant" else self._control
        marked = {name: self._broken(value, breaks, control) for name, value in message.items()}
        role = message.get("role")
        if role in ROLES:
            marked["role"] = role
        elif isinstance(role, str) and any(role in end for end in self._ends):
            marked["role"] = breaks[0] + marked["role"]
        return marked

    def _broken(self, value: Any, breaks: str, control: re.Pattern[str]) -> Any:
        if isinstance(value, dict):
            return {self._broken(k, breaks, control): self._broken(v, breaks, control) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._broken(item, breaks, control) for item in value]
        if not isinstance(value, str) or not value:
            return value
        inside, single = breaks[0], breaks[1]

        def broken(match: re.Match[str]) -> str:
            token = match[0]
            if len(token) == 1:
                return token + single
            return token[0] + (JOINER if token in self._unread else inside) + token[1:]

        text = control.sub(broken, value)
        return inside * self._closes(value) + text + inside * self._opens(value)

    def _opens(self, text: str) -> bool:
        """Whether the text ends with the beginning of a control token, which the text that follows could complete."""
        if text[-1] not in self._last:
            return False
        return any(text[-n:] in self._prefixes for n in range(1, min(self._longest, len(text) + 1)))

    def _closes(self, text: str) -> bool:
        """Whether the text begins with the end of a control token."""
        if text[0] not in self._first:
            return False
        return any(text[:n] in self._suffixes for n in range(1, min(self._longest, len(text) + 1)))

    def seal(self, rendered: str, breaks: str, cuts: Sequence[int] = ()) -> Rendering:
        """The rendered text with private names for the template's control tokens, and without the breaks.

        cuts: positions in `rendered`; the result has them as positions in the sealed text.
        """
        text, spans, begun, at = "", [], 0, []
        for first, after in pairwise((0, *cuts, len(rendered))):
            for piece in re.split(f"({BEGIN}|{END})", rendered[first:after]):
                if piece == BEGIN:
                    begun = len(text)
                elif piece == END:
                    spans.append((begun, len(text)))
                else:
                    text += self._sealed(piece, breaks)
            at.append(len(text))
        return Rendering(text, tuple(spans), tuple(at[:-1]))

    def _sealed(self, text: str, breaks: str) -> str:
        def name(match: re.Match[str]) -> str:
            typed = text[match.end() : match.end() + 1] == breaks[1]
            return match[0] if typed else self.names.get(match[0], match[0])

        forms = [*breaks, *map(_escape, breaks)]  # the template may have written them as JSON
        return re.sub("|".join(map(re.escape, forms)), "", self._found.sub(name, text))


def any_of(tokens: Collection[str]) -> re.Pattern[str]:
    """A pattern that finds the tokens, the longest first."""
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _unused(value: Any) -> str:
    """Two characters of Unicode's private plane 16 that occur nowhere in the messages, nor their escapes in JSON."""
    dumped = json.dumps(value, default=str).replace("\\", "")
    typed = set(re.findall("udb[c-f][0-9a-f]ud[c-f][0-9a-f]{2}", dumped))
    free = (chr(code) for code in range(0x100000, 0x110000) if _escape(chr(code)).replace("\\", "") not in typed)
    try:
        return next(free) + next(free)
    except StopIteration:
        raise InputError(
            "conversation: it contains all characters of Unicode's private plane 16; leave some out"
        ) from None


def _escape(character: str) -> str:
    return json.dumps(character)[1:-1]
