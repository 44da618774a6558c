#!/bin/bash
# llguidance 1.9.1, xgrammar 0.2.9, outlines_core 0.2.14: what each does with keywords of JSON Schema it does not know.
#
# Guess:     constrained decoding from a JSON schema gives JSON that fits the schema; a keyword that a library does not
#            implement is an error when the schema is compiled.
# Behaviour: only llguidance refuses such a schema. xgrammar and outlines_core compile it and leave the keyword out. So
#            they accept text that does not fit: also of `allOf`, of a `format` of dates, and in outlines_core even of
#            `maximum`. Both take `pattern` as if it had to match the whole string, and so forbid strings that fit.
# Seen:      the table below. holds: takes the valid text and not the invalid one.
# So an answer that is meant to fit a schema must be validated again, or the schema be checked for keywords first.
# Exit status 0: still so. 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    llguidance==1.9.1 xgrammar==0.2.9 outlines_core==0.2.14 jsonschema==4.26.0
cd "$folder"
"$folder/venv/bin/python" - 2>errors <<'PYTHON' || { tail -1 errors; exit 1; }
import json
import re

import xgrammar
from jsonschema import Draft202012Validator
from llguidance import LLMatcher, LLTokenizer
from outlines_core.json_schema import build_regex_from_schema
from xgrammar.testing import _is_grammar_accept_string

INTEGER = {"type": "integer"}
INTEGERS = {"type": "array", "items": INTEGER}
MAP = {"type": "object", "additionalProperties": INTEGER}
A_AND_B = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "additionalProperties": False}

SCHEMAS = {  # keyword: schema, a text that fits, a text that does not
    "maxLength": ({"type": "string", "maxLength": 2}, '"ab"', '"abc"'),
    "maximum": (INTEGER | {"maximum": 9}, "7", "12"),
    "multipleOf": (INTEGER | {"multipleOf": 5}, "10", "12"),
    "pattern": ({"type": "string", "pattern": "b"}, '"abc"', '"aac"'),
    "format": ({"type": "string", "format": "date"}, '"2026-02-28"', '"2026-02-30"'),
    "uniqueItems": (INTEGERS | {"uniqueItems": True}, "[1, 2]", "[1, 1]"),
    "contains": (INTEGERS | {"contains": {"const": 3}}, "[3]", "[4]"),
    "minProperties": (MAP | {"minProperties": 2}, '{"a": 1, "b": 2}', '{"a": 1}'),
    "propertyNames": (MAP | {"propertyNames": {"pattern": "^a+$"}}, '{"aa": 1}', '{"b": 1}'),
    "dependentRequired": (A_AND_B | {"dependentRequired": {"a": ["b"]}}, '{"a": 1, "b": 1}', '{"a": 1}'),
    "if": (A_AND_B | {"if": {"required": ["a"]}, "then": {"required": ["b"]}}, '{"a": 1, "b": 1}', '{"a": 1}'),
    "not": (INTEGER | {"not": {"const": 3}}, "4", "3"),
    "allOf": ({"allOf": [INTEGER | {"minimum": 0}, INTEGER | {"maximum": 9}]}, "7", "12"),
    "oneOf": ({"oneOf": [INTEGER | {"maximum": 5}, INTEGER | {"minimum": 3}]}, "9", "4"),
}


def llguidance(schema):
    tokenizer, grammar = LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(json.dumps(schema))
    if LLMatcher(tokenizer, grammar).is_error():
        raise ValueError

    def accepts(text):
        matcher, ids = LLMatcher(tokenizer, grammar), tokenizer.tokenize_str(text)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return accepts


def of_xgrammar(schema):
    grammar = xgrammar.Grammar.from_json_schema(json.dumps(schema))
    return lambda text: _is_grammar_accept_string(grammar, text)


def outlines_core(schema):
    pattern = re.compile(build_regex_from_schema(json.dumps(schema)))
    return lambda text: pattern.fullmatch(text) is not None


def verdict(compile_schema, schema, good, bad):
    try:
        accepts = compile_schema(schema)
    except Exception:
        return "refused"
    takes_good, takes_bad = accepts(good), accepts(bad)
    return "accepts invalid" if takes_bad else "holds" if takes_good else "rejects valid"


LIBRARIES = {"llguidance": llguidance, "xgrammar": of_xgrammar, "outlines_core": outlines_core}
HELD = {
    "llguidance": "maxLength maximum multipleOf pattern format minProperties allOf",
    "xgrammar": "maxLength maximum multipleOf minProperties propertyNames",
    "outlines_core": "maxLength",
}
print(f"{'':18}", *(f"{name:16}" for name in LIBRARIES))
table = {name: {} for name in LIBRARIES}
for keyword, (schema, good, bad) in SCHEMAS.items():
    oracle = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    assert oracle.is_valid(json.loads(good)) and not oracle.is_valid(json.loads(bad)), keyword
    for name, compile_schema in LIBRARIES.items():
        table[name][keyword] = verdict(compile_schema, schema, good, bad)
    print(f"{keyword:18}", *(f"{table[name][keyword]:16}" for name in LIBRARIES))
for name, found in table.items():
    held = {keyword for keyword, said in found.items() if said == "holds"}
    assert held == set(HELD[name].split()), f"{name} holds {held}"
    others = {said for keyword, said in found.items() if keyword not in held}
    assert others == ({"refused"} if name == "llguidance" else {"accepts invalid", "rejects valid"}), (name, others)
PYTHON
