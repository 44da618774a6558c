"""Grammars: which texts a response may be.

    json_schema_grammar(served, schema) -> Grammar;  Grammar.begin() -> the constraint of one response (engine)

Other grammars are made with `lark_grammar` from rules in which `@name` is JSON that fits a schema, and
`token_rule(served, text)` a token that is not text. They describe what follows the generation prompt.
"""

import json
from collections.abc import Mapping
from typing import Any

from tutelage.server.grammar_constraint import Grammar
from tutelage.server.json_schema import prepared
from tutelage.server.registry import Served

# One space may follow a comma or a colon, and no other white space is allowed: a small model could write it forever.
JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def token_rule(served: Served, text: str) -> str:
    """A text as a part of a rule: the token itself if it is one that is never part of a text, else its letters."""
    token = served.tokenizer.control_tokens.get(text)
    return json.dumps(text) if token is None else f"<[{token}]>"


def opening_rule(served: Served) -> str:
    """The beginning of a response as a part of a rule: SentencePiece may put a space there, which is not shown."""
    return "" if served.tokenizer.byte_level else '" "? '


def lark_grammar(served: Served, rules: str, schemas: Mapping[str, Mapping[str, Any]] = {}) -> Grammar:  # noqa: B006
    """The grammar of these rules, of which `start` is the first; @name stands for a schema.

    Raises InputError if there is a fault in them, naming the keyword of a schema that answers could not be held to.
    """
    assert served.vocabulary, "only policies generate text"
    ready = {name: prepared(schema) | {"x-guidance": JSON_OPTIONS} for name, schema in schemas.items()}
    return served.vocabulary.compile(rules, ready)


def json_schema_grammar(served: Served, schema: Mapping[str, Any]) -> Grammar:
    """JSON that fits a schema. Raises InputError, naming the keyword, if answers could not be held to the schema."""
    return lark_grammar(served, f"start: {opening_rule(served)}@json", {"json": schema})


def json_object_grammar(served: Served) -> Grammar:
    """Any JSON object."""
    return json_schema_grammar(served, {"type": "object"})
