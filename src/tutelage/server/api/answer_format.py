"""What the answer to a chat call may be, and how it is read.

format_of(served, body, prompt) -> AnswerFormat: .reader() for reasoning, content and calls, .grammar or None
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from tutelage.errors import InputError
from tutelage.server.api.chat_schemas import ChatRequest, Function
from tutelage.server.api.response_format import grammar_of, schema_of
from tutelage.server.api.tool_grammar import CallRules, Schema, answer_grammar
from tutelage.server.grammar import json_schema_grammar
from tutelage.server.grammar_constraint import Grammar
from tutelage.server.registry import Served
from tutelage.text.answer import AnswerReader, visible_marks
from tutelage.text.reasoning import Thinking, thinking_after
from tutelage.text.tool_calls import CallFinder
from tutelage.text.tool_syntax import ToolSyntax, syntax_of
from tutelage.web.errors import ApiError


@dataclass(frozen=True)
class AnswerFormat:
    """The format of the answers to one call."""

    opened: bool = False  # whether the prompt has opened the reasoning
    grammar: Grammar | None = None  # None: free text
    syntax: ToolSyntax | None = None  # of calls; None: there are none
    names: frozenset[str] = frozenset()  # the functions that may be called
    most: int | None = None  # calls per answer; None: any number
    live: bool = False  # whether arguments are passed on as they grow: the answer can be nothing but valid calls
    marks: Mapping[int, bytes] = field(default_factory=dict)  # text of the special tokens that the reader must see

    def reader(self) -> AnswerReader:
        """Reads one answer."""
        finder = CallFinder(self.syntax, self.names, self.live, self.most) if self.syntax else None
        return AnswerReader(self.opened, finder)


def format_of(served: Served, body: ChatRequest, prompt: Sequence[int]) -> AnswerFormat:
    """Raises ApiError, naming the keyword, for a schema that answers could not be held to."""
    thinking, functions = thinking_after(served.tokenizer, prompt), body.callable
    syntax = syntax_of(served.tokenizer) if functions else None
    return AnswerFormat(
        opened=thinking == "opened",
        grammar=_grammar(served, body, thinking, syntax),
        syntax=syntax,
        names=frozenset(function.name for function in functions),
        most=None if body.several else 1,
        live=body.must_call,
        marks=visible_marks(served.tokenizer, syntax),
    )


def _grammar(served: Served, body: ChatRequest, thinking: Thinking, syntax: ToolSyntax | None) -> Grammar | None:
    """The grammar of the answer. Free text has none, and neither have calls that need not fit a schema."""
    content = grammar_of(served, body.response_format)
    schema = schema_of(body.response_format)
    strict = any(function.strict for function in body.callable)
    if syntax is None or not (body.must_call or content or (strict and not syntax.bare)):
        if content is None or thinking == "none":
            return content
        return answer_grammar(served, thinking, schema, None)
    for schema_for in (parameters_of, partial(_held, served), _loose):
        functions = [(function.name, schema_for(function)) for function in body.callable]
        try:
            return answer_grammar(served, thinking, schema, CallRules(syntax, functions, body.must_call, body.several))
        except InputError as error:
            reason = str(error)
    message = f"This server cannot hold an answer to so many functions: {reason}"
    raise ApiError(400, message, param="tools", code="unsupported_schema")


def parameters_of(function: Function) -> Schema:
    """The schema of a function's arguments, which are always an object."""
    if function.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object"} | function.parameters


def _held(served: Served, function: Function) -> Schema:
    """The schema to hold a call's arguments to: any object if the library cannot hold to a schema that is not strict.

    Raises ApiError, naming the keyword, for one that is strict.
    """
    try:
        json_schema_grammar(served, parameters_of(function))
        return parameters_of(function)
    except InputError as error:
        if not function.strict:
            return {"type": "object"}
        message = f"This server cannot hold calls to the strict parameters of function '{function.name}': {error}"
        raise ApiError(400, message, param="tools", code="unsupported_schema") from None


def _loose(function: Function) -> Schema:
    """Any object for a function that is not strict, if all schemas together are too large."""
    return parameters_of(function) if function.strict else {"type": "object"}
