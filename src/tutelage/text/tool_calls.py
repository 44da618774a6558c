"""Finds the function calls in an answer as it grows.

    CallFinder(syntax, names).feed(text) -> Content(text), CallBegin(index, name), CallArguments(index, text) ...

A call is passed on when it is complete and valid: its JSON can be read, its function is one of `names`, its arguments
are an object. What only looks like a call stays content, and nothing of it is lost. With `live`, for answers whose
grammar allows only valid calls, arguments are passed on as they grow. White space next to calls is dropped.
"""

import re
from collections.abc import Collection

from tutelage.text.pieces import CallArguments, CallBegin, Content, Piece, unfinished
from tutelage.text.tool_json import JsonEnd, read_call
from tutelage.text.tool_syntax import ToolSyntax

KEYS = {"name", "arguments", "parameters", "id", "type"}  # of a call that is written as an object
LISTED = re.compile(r"[\s,;\[\]]*")  # between calls that are listed in an array, or one after the other
MARKED = re.compile(r"\s*")  # between calls that have a mark each
LINE_START = re.compile(r"(?:^|(?<=\n))[ \t]*(?=[{\[])")
FIRST_KEY = re.compile(r'\{\s*(?:"((?:[^"\\]|\\.){0,64})"|[^"\s])')
HEADER = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
NAME = re.compile(r"([A-Za-z0-9_.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*)?(?=\{)")
NAME_SO_FAR = re.compile(r"[A-Za-z0-9_.-]+\s*(?:\[(?:C[A-Z_]*(?:\]\s*\w*\s*)?)?)?(?:\[(?:A[A-Z]*(?:\]\s*)?)?)?")


def _past(pattern: re.Pattern[str], text: str, start: int = 0) -> int:
    """The position after what the pattern matches at `start`."""
    match = pattern.match(text, start)
    return match.end() if match else start


class NotACall(Exception):
    """The text only looks like a call. `skip` says how much of it is content in any case."""

    def __init__(self, skip: int):
        self.skip = skip


class Call:
    """One call in a growing text, from its mark, or from its opening brace, on."""

    def __init__(self, syntax: ToolSyntax, names: Collection[str], start: int, mark: int, listed: bool):
        """start: where the call begins. mark: length of its mark, 0 without one. listed: it follows another call."""
        self.syntax, self.names = syntax, names
        self._named, self._is_call = mark > 0 and "[ARGS]" in syntax.marks, mark > 0 or listed
        self._at = start + mark
        self._skip = start + max(mark, 1)
        self._object: JsonEnd | None = None  # reads to the end of the call's object
        self._name: str | None = None  # the function, if it stands before the object
        self._arguments: JsonEnd | None = None  # reads to the end of the arguments
        self._sent: int | None = None  # how far the arguments have been passed on; None: they are all passed on
        self.begun: str | None = None  # the function of a call whose arguments are passed on as they grow

    def read(self, text: str, final: bool) -> tuple[int, str, str] | None:
        """Where the call ends, its name and its arguments. None if more text is needed. Raises NotACall."""
        if not self._find_object(text):
            self._more_needed(final)
            return None
        assert self._object
        key = FIRST_KEY.match(text, self._at)
        if key and not self._name and key[1] not in KEYS:
            raise NotACall(self._skip)
        end = self._object.find(text)
        if end is None:
            self._more_needed(final)
            return None
        call = read_call(text[self._at : end], self.names, self._name, self._is_call)
        if call is None:
            raise NotACall(self._skip if self._is_call else end)
        after = self._past_mark(text, end, final)
        return None if after is None else (after, *call)

    def _more_needed(self, final: bool) -> None:
        """Raises NotACall if there will be no more text."""
        if final:
            raise NotACall(self._skip)

    def _find_object(self, text: str) -> bool:
        """Whether the object's opening brace is there. Raises NotACall if something else is."""
        if self._object:
            return True
        at = _past(LISTED, text, self._at)
        if self._named and (named := NAME.match(text, at)):
            self._name, at = named[1], named.end()
        elif at == len(text) or (self._named and NAME_SO_FAR.fullmatch(text, at)):
            return False
        if text[at] != "{" or (self._name and self._name not in self.names):
            raise NotACall(self._skip)
        self._at, self._object = at, JsonEnd(at)
        return True

    def _past_mark(self, text: str, end: int, final: bool) -> int | None:
        """The position after the mark that ends the call, if its syntax has one. None if more text is needed."""
        begin, mark = self.syntax.begin, self.syntax.end
        rest = text[end:].lstrip()
        if not mark or (final and not rest) or rest.startswith((begin, "{")):
            return end
        if rest.startswith(mark):
            return len(text) - len(rest) + len(mark)
        if final or not (mark.startswith(rest) or begin.startswith(rest)):
            raise NotACall(self._skip)
        return None

    def growing(self, text: str) -> str:
        """More of the arguments, as the text grows. `begun` is set when they begin."""
        if self.begun is None and self._object:
            header = None if self._name else HEADER.match(text, self._at)
            name, self._sent = (header[1], header.end()) if header else (self._name, self._at)
            self.begun, self._arguments = name if name in self.names else None, JsonEnd(self._sent)
        if self.begun is None or self._sent is None or self._arguments is None:
            return ""
        end = self._arguments.find(text)
        more, self._sent = text[self._sent : end], None if end else len(text)
        return more


class CallFinder:
    """The content and the calls of one answer."""

    def __init__(self, syntax: ToolSyntax, names: Collection[str], live: bool = False, most: int | None = None):
        """most: end the answer after this many calls; None: any number."""
        self.syntax, self.names, self.live, self.most = syntax, names, live, most
        self.count = 0
        self._between = MARKED if syntax.end else LISTED
        self._withheld = ""
        self._passed = False  # whether the withheld text continues a line of content
        self._after = False  # whether the withheld text follows a call
        self._call: Call | None = None

    @property
    def done(self) -> bool:
        """Whether the answer has all the calls that it may have. What follows is dropped."""
        return self.count == self.most

    def feed(self, text: str, final: bool = False) -> list[Piece]:
        """Add text to the answer. final: it is the last one."""
        self._withheld += text
        pieces: list[Piece] = []
        while not self.done:
            if self._call is None and not self._open(pieces):
                return pieces + self._pass(final)
            if not self._advance(pieces, final):
                return pieces
        return pieces

    def finish(self) -> list[Piece]:
        """The withheld rest, at the end of the answer."""
        return self.feed("", final=True)

    def _open(self, pieces: list[Piece]) -> bool:
        """Whether the text has the beginning of a possible call. Text before it is content, but for white space."""
        text, begin = self._withheld, self.syntax.begin
        starts = [text.find(begin)] if begin and begin in text else []
        if self._after and text.startswith("{", gap := _past(self._between, text)):
            starts.append(gap)
        elif self.syntax.bare:
            starts += [m.end() for m in LINE_START.finditer(text) if m.start() or not self._passed][:1]
        if not starts:
            return False
        start = min(starts)
        if not (self._after and self._between.fullmatch(text, 0, start)):
            pieces += self._content(len(text[:start].rstrip()))
            start -= len(text) - len(self._withheld)
        mark = len(begin) if self._withheld.startswith(begin, start) else 0
        self._call = Call(self.syntax, self.names, start, mark, self._after)
        return True

    def _advance(self, pieces: list[Piece], final: bool) -> bool:
        """Read on in the possible call. Returns whether the text after it can be read."""
        call, text, found = self._call, self._withheld, None
        assert call
        try:
            found = call.read(text, final)
        except NotACall as reason:
            if call.begun is None:
                self._call = None
                pieces += self._pass(final) if self._cut_off(final) else self._content(reason.skip)
                return not self._cut_off(final)
        if self.live and (more := self._grow(call, text)):
            pieces += more
        if found is None and not (final and call.begun):
            return False
        end, name, arguments = found or (len(text), "", "")
        if call.begun is None:
            pieces += [CallBegin(self.count, name), CallArguments(self.count, arguments)]
        self._withheld, self._call = text[end:], None
        self._after, self.count = True, self.count + 1
        return True

    def _grow(self, call: Call, text: str) -> list[Piece]:
        """What a call that is not complete adds."""
        new, more = call.begun is None, call.growing(text)
        begin: list[Piece] = [CallBegin(self.count, call.begun)] if new and call.begun else []
        return [*begin, CallArguments(self.count, more)] if more else begin

    def _pass(self, final: bool) -> list[Piece]:
        """The content in a text without a possible call: all but what could still become one."""
        text = self._withheld
        if self._after and (self._between.fullmatch(text) or self._cut_off(final)):
            return []
        if final:
            return self._content(len(text))
        return self._content(len(text[: len(text) - unfinished(text, self.syntax.begin)].rstrip()))

    def _cut_off(self, final: bool) -> bool:
        """Whether the text is the beginning of a further call that the answer's maximum length has cut off."""
        return self.live and final and self._after

    def _content(self, length: int) -> list[Piece]:
        """The first `length` characters of the withheld text as content."""
        text, self._withheld = self._withheld[:length], self._withheld[length:]
        if not text:
            return []
        if self._after and self._between is LISTED:  # the end of an array of calls is not content
            gap = _past(LISTED, text)
            text = re.sub(r"[,;\[\]]", "", text[:gap]) + text[gap:]
        self._passed, self._after = True, False
        return [Content(text)]
