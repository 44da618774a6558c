"""How a model writes function calls, decided by its chat template and its control tokens.

Hermes, Qwen  <tool_call>{"name": "f", "arguments": {...}}</tool_call>
Mistral       [TOOL_CALLS] [{"name": "f", "arguments": {...}}, ...]   or   [TOOL_CALLS]f[ARGS]{...}
Llama 3       {"name": "f", "parameters": {...}}, with or without <|python_tag|> before it
plain JSON    {"name": "f", "arguments": {...}}
"""

from collections.abc import Collection
from dataclasses import dataclass

from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ToolSyntax:
    """One way to write calls. A call is a JSON object of name and arguments, unless `named`."""

    name: str
    begin: str = ""  # the mark before calls
    end: str = ""  # the mark after a call
    key: str = "arguments"  # what the arguments are called in the object
    bare: bool = False  # whether an object at the beginning of a line is a call without any mark
    named: bool = False  # the name stands before the object, which holds the arguments alone

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks that may be control tokens of a vocabulary."""
        inner = ("[CALL_ID]", "[ARGS]") if self.begin == MISTRAL.begin else ()
        return tuple(mark for mark in (self.begin, self.end, *inner) if mark)


HERMES = ToolSyntax("hermes", "<tool_call>", "</tool_call>")
MISTRAL = ToolSyntax("mistral", "[TOOL_CALLS]")
MISTRAL_NAMED = ToolSyntax("mistral_named", "[TOOL_CALLS]", named=True)
LLAMA = ToolSyntax("llama", "<|python_tag|>", key="parameters", bare=True)
JSON = ToolSyntax("json", bare=True)


def syntax_of(tokenizer: Tokenizer) -> ToolSyntax:
    """The syntax of a model with this tokenizer."""
    return tool_syntax(tokenizer.chat_template, tokenizer.added, tokenizer.template.knows_tools)


def tool_syntax(template: str, added: Collection[str], knows_tools: bool) -> ToolSyntax:
    """The syntax of a model. Its template decides before its added tokens do, because tokens are often inherited.

    A template that does not know tools gets our own description of them, which asks for Hermes' syntax.
    """
    if not knows_tools:
        return HERMES
    for text in (template, " ".join(added)):
        if HERMES.begin in text:
            return HERMES
        if MISTRAL.begin in text:
            return MISTRAL_NAMED if "[ARGS]" in text else MISTRAL
        if LLAMA.begin in text:
            return LLAMA
    return LLAMA if '"parameters"' in template and '"arguments"' not in template else JSON
