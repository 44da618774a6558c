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
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from tutelage.errors import InputError
from tutelage.text.template import BEGIN, END, PRIVATE, Message, Rendering, as_templates_read, unforgeable

SECRET = unforgeable()
ROLES = ("system", "user", "assistant", "developer", "tool")
THINK = ("<think>", "</think>")  # written by the models themselves, so an assistant's turn may contain them
ANCHORS = ("\n", ".", "a", "1")


class Guard:
    """Keeps the control tokens that users type apart from those of the template."""

    def __init__(self, control: Collection[str], added: Collection[str], ends: Collection[str]):
        """control: the tokens that only a template may write; added: all tokens that the tokenizer finds in text;
        ends: control tokens that no role may spell."""
        self.names = {token: f"{SECRET}{chr(PRIVATE + i)}" for i, token in enumerate(sorted(control))}
        self._found = any_of({*control, *added})
        self._control = any_of(control)
        self._answers = any_of(set(control) - set(THINK))
        self._prefixes = {token[:n] for token in control for n in range(1, len(token))}
        self._suffixes = {token[n:] for token in control for n in range(1, len(token))}
        self._last = {prefix[-1] for prefix in self._prefixes}
        self._first = {suffix[0] for suffix in self._suffixes}
        self._longest = max(map(len, control), default=0)
        self._ends = tuple(ends)

    def mark(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Message], str]:
        """The messages with their control tokens broken, and the two private characters that break them."""
        breaks = _unused(messages)
        return [self._message(as_templates_read(message), breaks) for message in messages], breaks

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
        inside, single = breaks
        text = control.sub(lambda m: m[0][0] + inside + m[0][1:] if len(m[0]) > 1 else m[0] + single, value)
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

        return re.sub(f"[{breaks}]", "", self._found.sub(name, text))


class Reader:
    """A copy of a tokenizer that knows its control tokens by private names only."""

    def __init__(self, backend: BackendTokenizer, names: Mapping[str, str]):
        self._ids = {name: backend.token_to_id(token) for token, name in names.items()}
        self._backend = _renamed(backend, names)
        self._names = re.compile(f"({SECRET}.)", re.DOTALL)
        self._segment_ids = lru_cache(maxsize=1024)(self._encode_segment)

    def encode(self, text: str) -> list[int]:
        """Ids of a sealed text, those of one call of the tokenizer."""
        return self.encode_segments(text)[0]

    def encode_segments(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a sealed text, and for each control token in it the number of ids up to it.

        Control tokens separate a text into segments that do not influence each other, and a longer conversation repeats
        the segments of a shorter one, so each is encoded once.
        """
        ids: list[int] = []
        marks: list[int] = []
        parts = ["", *self._names.split(text), ""]  # "", segment, name, segment, ..., name, segment, ""
        for left, segment, right in zip(parts[0::2], parts[1::2], parts[2::2], strict=False):
            ids += self._segment_ids(left, segment, right)
            if right:
                ids.append(self._ids[right])
                marks.append(len(ids))
        return ids, marks

    def prefix(self, text: str, ids: Sequence[int], marks: Sequence[int]) -> int | None:
        """How many ids `text` has; None if `ids`, those of a longer text with its marks, do not begin with them."""
        names = text.count(SECRET)
        left, tail = (text[(at := text.rindex(SECRET)) : at + 4], text[at + 4 :]) if names else ("", text)
        start, last = marks[names - 1] if names else 0, self._segment_ids(left, tail, "")
        return start + len(last) if tuple(ids[start : start + len(last)]) == last else None

    def _encode_segment(self, left: str, segment: str, right: str) -> tuple[int, ...]:
        """Ids of the text between two control tokens; "" is the beginning or the end of the text."""
        if not segment:
            return ()
        ids = self._backend.encode(left + segment + right, add_special_tokens=False).ids
        return tuple(ids[bool(left) : len(ids) - bool(right)])

    def continued(self, text: str, more: str) -> tuple[list[int], int]:
        """Ids of `text + more` that begin with the ids of `text`, and how many these are.

        A merge across the boundary is undone, because a model that is given `text` has only its ids.
        """
        whole, marks = self.encode_segments(text + more)
        start = self.prefix(text, whole, marks)
        if start is not None:
            return whole, start
        before = self.encode(text)
        return before + self._after_text(more), len(before)

    def _after_text(self, more: str) -> list[int]:
        """Ids of a text in the middle of another, without the prefix that some tokenizers put before a text."""
        for anchor in ANCHORS:
            before, whole = self.encode(anchor), self.encode(anchor + more)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self.encode(more)


def any_of(tokens: Collection[str]) -> re.Pattern[str]:
    """A pattern that finds the tokens, the longest first."""
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _unused(value: Any) -> str:
    """Two characters of Unicode's private plane 16 that occur nowhere in the messages."""
    typed = set(re.findall("[\U00100000-\U0010ffff]", json.dumps(value, ensure_ascii=False, default=str)))
    free = (chr(code) for code in range(0x100000, 0x110000) if chr(code) not in typed)
    try:
        return next(free) + next(free)
    except StopIteration:
        raise InputError(
            "conversation: it contains all characters of Unicode's private plane 16; leave some out"
        ) from None


def _renamed(backend: BackendTokenizer, names: Mapping[str, str]) -> BackendTokenizer:
    """The same tokenizer with other names for some tokens, which keep their ids."""
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): i for token, i in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:  # none of ordinary text into a control token
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not names.keys() & {*pair, "".join(pair)}]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    renamed = BackendTokenizer.from_str(json.dumps(state | {"post_processor": None}))
    renamed.encode_special_tokens = False
    return renamed
