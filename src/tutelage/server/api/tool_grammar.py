"""Rules for answers with reasoning, function calls and JSON, in llguidance's variant of Lark (`server/grammar.py`).

    answer_grammar(served, thinking, schema, calls) -> Grammar

An answer is reasoning that ends with its mark, then content or calls. Calls have the syntax that the model knows.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.server.grammar import lark_grammar, opening_rule, token_rule
from tutelage.server.grammar_constraint import Grammar
from tutelage.server.registry import Served
from tutelage.text.reasoning import CLOSE, OPEN, Thinking
from tutelage.text.tool_syntax import HERMES, MISTRAL, MISTRAL_NAMED, ToolSyntax

Schema = Mapping[str, Any]
TEXT = r"/(.|\n)*/"


@dataclass(frozen=True)
class CallRules:
    """The calls that an answer may contain."""

    syntax: ToolSyntax
    functions: Sequence[tuple[str, Schema]]  # name, and the schema of the arguments
    must: bool  # whether the answer must be a call
    several: bool  # whether it may contain more than one


def answer_grammar(served: Served, thinking: Thinking, schema: Schema | None, calls: CallRules | None) -> Grammar:
    """The grammar of an answer. Its content is JSON that fits the schema; None: free text.

    Raises InputError, naming the keyword, for a schema that answers could not be held to.
    """
    schemas = {f"arguments{i}": arguments for i, (_, arguments) in enumerate(calls.functions if calls else ())}
    if schema is not None:
        schemas["content"] = schema
    return lark_grammar(served, "\n".join(_rules(served, thinking, schema is not None, calls)), schemas)


def _rules(served: Served, thinking: Thinking, is_json: bool, calls: CallRules | None) -> list[str]:
    """The rules of an answer; `start` is the first. @content and @arguments0 ... stand for its schemas."""
    reasoning = {"opened": "reasoning ", "possible": f"({token_rule(served, OPEN)} reasoning)? ", "none": ""}[thinking]
    rules = [f"start: {opening_rule(served)}{reasoning}answer"]
    if reasoning:
        rules += [r"reasoning: thought /[ \n]{0,4}/", *_until(served, "thought", CLOSE)]
    return rules + (_with_calls(served, is_json, calls) if calls else ["answer: @content"])


def _until(served: Served, name: str, mark: str) -> list[str]:
    """A rule for text that ends with its first mark."""
    rule = token_rule(served, mark)
    return [f"{name}: {TEXT} {rule}"] if rule[0] == "<" else [f"{name}[suffix={rule}]: {TEXT}"]


def _with_calls(served: Served, is_json: bool, calls: CallRules) -> list[str]:
    """The rules for an answer with calls: calls alone, or calls or JSON, or text with calls."""
    syntax = calls.syntax
    begin = "" if syntax.bare else token_rule(served, syntax.begin)
    between = r'"\n" ' if syntax == HERMES else ""
    more = f" ({between}{begin} group)*" if calls.several and syntax in (HERMES, MISTRAL_NAMED) else ""
    rules = [f"calls: {begin} group{more}", *_group(served, calls)]
    if calls.must:
        return ["answer: calls", *rules]
    if is_json:
        return ["answer: @content | calls", *rules]
    if begin.startswith("<"):
        return [f"answer: {TEXT} (calls {TEXT})?", *rules]
    mark = re.escape(syntax.begin).replace("/", r"\/")
    free = rf"FREE: {TEXT} & ~/(.|\n)*{mark}(.|\n)*/"
    return [f"answer: FREE | before group{more}", free, *_until(served, "before", syntax.begin), *rules]


def _group(served: Served, calls: CallRules) -> list[str]:
    """The rules for what follows a mark: a call, or in Mistral's older syntax a list of calls."""
    if calls.syntax == MISTRAL_NAMED:
        between = token_rule(served, "[ARGS]")
        written = [f"{json.dumps(name)} {between} @arguments{i}" for i, (name, _) in enumerate(calls.functions)]
    else:
        heads = [f'{{"name": "{name}", "{calls.syntax.key}": ' for name, _ in calls.functions]
        written = [f'{json.dumps(head)} @arguments{i} "}}"' for i, head in enumerate(heads)]
    group = "call"
    if calls.syntax == HERMES:
        group = rf'"\n" call "\n" {token_rule(served, HERMES.end)}'
    elif calls.syntax == MISTRAL:
        group = '" "? "[" call ("," " "? call)* "]"' if calls.several else '" "? "[" call "]"'
    return [f"group: {group}", f"call: {' | '.join(written)}"]
