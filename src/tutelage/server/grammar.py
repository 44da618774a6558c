"""Grammars: which texts a response may be.

    json_schema_grammar(served, schema) -> Grammar;  Grammar.begin() -> the constraint of one response (engine)

Other grammars are made with `lark_grammar` from rules that hold `json_rule(schema)` for a JSON value and
`token_rule(served, text)` for a token that is not text. They describe what follows the generation prompt.
"""

import json
from collections.abc import Mapping
from typing import Any

from tutelage.server.registry import Served
from tutelage.server.vocabulary import Grammar

# One space may follow a comma or a colon, and no other white space is allowed: a small model could write it forever.
JSON_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def json_rule(schema: Mapping[str, Any]) -> str:
    """A JSON value that fits a schema, as the right side of a rule."""
    return "%json " + json.dumps({"x-guidance": JSON_OPTIONS, **schema})


def token_rule(served: Served, text: str) -> str:
    """A text as a part of a rule: the token itself if it is one that is never part of a text, else its letters."""
    tokenizer = served.tokenizer
    found = [i for i in tokenizer.control_ids if tokenizer.tokens()[i] == text]
    return f"<[{found[0]}]>" if found else json.dumps(text)


def lark_grammar(served: Served, rules: str) -> Grammar:
    """The grammar of these rules, of which `start` is the first. Raises InputError if there is a fault in them."""
    assert served.vocabulary, "only policies generate text"
    return served.vocabulary.compile(rules)


def json_schema_grammar(served: Served, schema: Mapping[str, Any]) -> Grammar:
    """JSON that fits a schema. Raises InputError, naming the keyword, if the library cannot hold to the schema."""
    space = "" if served.tokenizer.byte_level else '" "? '  # SentencePiece begins with a space, which is not shown
    return lark_grammar(served, f"start: {space}json\njson: {json_rule(schema)}")


def json_object_grammar(served: Served) -> Grammar:
    """Any JSON object."""
    return json_schema_grammar(served, {"type": "object"})
