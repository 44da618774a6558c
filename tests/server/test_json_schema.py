"""What a schema says is held to, or its keyword is refused by name: never ignored. The judge is `jsonschema`."""

import asyncio
import datetime
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from tutelage.errors import InputError
from tutelage.server.grammar import json_schema_grammar, lark_grammar
from tutelage.server.vocabulary import Vocabulary
from tutelage.text.bpe import train_bpe
from tutelage.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def served() -> Iterator[SimpleNamespace]:
    tokenizer = train_bpe([__doc__ or ""], 270)
    vocabulary = Vocabulary(tokenizer, tokenizer.token_bytes(), tokenizer.end_ids)
    yield SimpleNamespace(tokenizer=tokenizer, vocabulary=vocabulary)
    vocabulary.close()


def allows(served: SimpleNamespace, grammar: Any, text: str) -> bool:
    """Whether a response may be this text, and end there, by the masks that the engine would see."""
    tokenizer: Tokenizer = served.tokenizer
    rule = grammar.begin()
    for token in [*tokenizer.encode(text), tokenizer.end_ids[0]]:
        if rule.ended:
            return token == tokenizer.end_ids[0]
        if not rule.grammar.matcher.deep_copy().is_stopped() and rule._matcher.validate_tokens([token]) == 0:
            return False
        rule.take(token, 10**9)
    return True


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


STRING, INTEGER, NUMBER, ARRAY, OBJECT = ({"type": t} for t in ("string", "integer", "number", "array", "object"))
NODE = closed(v=INTEGER, n={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})
HELD: list[tuple[dict[str, Any], list[Any], list[Any]]] = [  # schema, values that fit, values that do not
    (STRING | {"minLength": 3}, ["abc", "天气好"], ["ab", "天气", 1]),
    (STRING | {"maxLength": 3}, ["", "abc", 'a"\\'], ["abcd", None]),
    (STRING | {"pattern": "^a[0-9]+$"}, ["a12"], ["b1", "a"]),
    (STRING | {"pattern": "[0-9]"}, ["a1b"], ["ab"]),
    (STRING | {"pattern": r"^\d{2}$"}, ["12"], ["ab", "1"]),
    (STRING | {"pattern": "^a+$", "maxLength": 3}, ["aaa"], ["aaaa", ""]),
    (STRING | {"format": "date"}, ["2024-12-31"], ["2024-02-30", "2023-02-29", "31.12.2024"]),
    (STRING | {"format": "time"}, ["23:59:59Z", "00:00:00.5+01:00"], ["24:00:00Z", "23:59:59"]),
    (STRING | {"format": "date-time"}, ["2024-12-31T23:59:59Z"], ["2024-12-31", "2024-12-31T23:59:61Z"]),
    (STRING | {"format": "date", "pattern": "^2"}, ["2024-12-31"], ["1024-12-31"]),
    (STRING | {"format": "uuid"}, ["12345678-1234-1234-1234-123456789abc"], ["1234"]),
    (STRING | {"format": "ipv4"}, ["1.2.3.4"], ["1.2.3", "1.2.3.400"]),
    (STRING | {"format": "email"}, ["a@b.de"], ["a"]),
    (STRING | {"format": "password"}, ["anything"], [1]),
    (INTEGER, [0, -5, 10**17], [1.5, "1"]),
    (INTEGER | {"minimum": 5}, [5, 600], [4, -6]),
    (INTEGER | {"maximum": 5}, [5, -1], [6]),
    (INTEGER | {"exclusiveMinimum": 5, "exclusiveMaximum": 7}, [6], [5, 7]),
    (INTEGER | {"minimum": -(10**300), "maximum": 3}, [3, -9], [4]),
    (NUMBER | {"exclusiveMinimum": 0}, [0.5, 3], [0, -1]),
    (NUMBER | {"minimum": 1.5, "maximum": 2}, [1.5, 2, 1.75], [1.4, 2.1]),
    (INTEGER | {"multipleOf": 5}, [10, 0, -5], [7]),
    (NUMBER | {"multipleOf": 0.01}, [0.25, 3], [0.255]),
    ({"allOf": [INTEGER | {"multipleOf": 6}, {"multipleOf": -4}]}, [12, 0], [6, 4]),
    ({"enum": ["a", 1, None]}, ["a", 1, None], [2, "b", True]),
    ({"const": {"a": [1]}}, [{"a": [1]}], [{"a": [2]}]),
    (STRING | {"enum": ["a", 1]}, ["a"], [1]),
    ({"type": ["integer", "null"]}, [None, 3], ["a"]),
    (ARRAY | {"items": INTEGER, "minItems": 2}, [[1, 2], [1, 2, 3]], [[1], ["a", "b"]]),
    (ARRAY | {"items": INTEGER, "maxItems": 2, "uniqueItems": False}, [[], [1, 1]], [[1, 2, 3]]),
    (ARRAY | {"prefixItems": [INTEGER, STRING], "items": False, "minItems": 2}, [[1, "a"]], [["a", 1], [1, "a", 1]]),
    (closed(a=INTEGER), [{"a": 1}], [{}, {"a": "x"}, {"a": 1, "b": 2}]),
    (OBJECT | {"required": ["a"]}, [{"a": None}], [{}]),
    (OBJECT | {"properties": {"a": True}, "unevaluatedProperties": False}, [{}, {"a": 1}], [{"b": 1}]),
    (OBJECT | {"additionalProperties": INTEGER}, [{"b": 1}], [{"b": "x"}]),
    (OBJECT | {"patternProperties": {"^x": INTEGER}, "additionalProperties": False}, [{"x": 1}], [{"x": ""}, {"a": 1}]),
    (OBJECT | {"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": INTEGER}, [{"b": 1}], [{"c": 1}]),
    (OBJECT | {"propertyNames": {"$ref": "#/$defs/n"}, "$defs": {"n": {"enum": ["a"]}}}, [{"a": None}], [{"c": 1}]),
    (OBJECT | {"propertyNames": {"pattern": "^x"}, "additionalProperties": INTEGER}, [{"x": 1}], [{"a": 1}, {"x": ""}]),
    (OBJECT | {"propertyNames": STRING}, [{"a": 1}], [[]]),
    (OBJECT | {"minProperties": 1, "additionalProperties": INTEGER}, [{"a": 1}], [{}]),
    (OBJECT | {"maxProperties": 1, "additionalProperties": INTEGER}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    (closed(a=INTEGER, b=INTEGER) | {"minProperties": 2}, [{"a": 1, "b": 2}], [{"a": 1}]),
    ({"anyOf": [INTEGER, STRING]}, ["a", 1], [None, 1.5]),
    ({"oneOf": [INTEGER, STRING]}, ["a", 1], [None]),
    ({"oneOf": [closed(k={"const": "a"}), closed(k={"const": "b"}, x=INTEGER)]}, [{"k": "b", "x": 1}], [{"k": "b"}]),
    ({"oneOf": [closed(a=INTEGER), closed(b=INTEGER)]}, [{"b": 1}], [{"a": 1, "b": 1}]),
    ({"oneOf": [{"$ref": "#/$defs/x"}, {"type": "null"}], "$defs": {"x": closed(a=INTEGER)}}, [None, {"a": 1}], [1]),
    ({"allOf": [INTEGER | {"minimum": 3}, {"maximum": 5}]}, [4], [2, 6]),
    ({"$ref": "#/$defs/x", "minimum": 5, "$defs": {"x": INTEGER}}, [6], [4]),
    ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, [{"v": 1, "n": {"v": 2, "n": None}}], [{"v": 1, "n": 2}]),
    (OBJECT | {"properties": {"a": {"$ref": "#"}}, "additionalProperties": False}, [{"a": {"a": {}}}], [{"a": 1}]),
    (INTEGER | {"title": "a", "description": "b", "default": 7, "examples": [1], "deprecated": True}, [3], ["a"]),
    (closed(**{"not": INTEGER, "uniqueItems": INTEGER}), [{"not": 1, "uniqueItems": 2}], [{"not": "a"}]),
    (INTEGER | {"x-guidance": {"lenient": True}}, [3], ["a"]),
]  # fmt: skip


CHECKER = FormatChecker(Draft202012Validator.FORMAT_CHECKER.checkers)  # those that need no other package, and these:


@CHECKER.checks("time", raises=ValueError)
def is_time(value: Any) -> bool:
    return datetime.time.fromisoformat(value).tzinfo is not None


@CHECKER.checks("date-time", raises=ValueError)
def is_date_time(value: Any) -> bool:
    return datetime.datetime.fromisoformat(value).tzinfo is not None


@pytest.mark.parametrize("schema, fit, others", HELD, ids=lambda value: json.dumps(value)[:60])
def test_answers_are_held_to_a_schema(served: Any, schema: dict[str, Any], fit: list[Any], others: list[Any]) -> None:
    judge = Draft202012Validator(schema, format_checker=CHECKER)
    grammar = json_schema_grammar(served, schema)
    for value in fit:
        assert judge.is_valid(value)
        for separators in ((",", ":"), (", ", ": ")):
            assert allows(served, grammar, json.dumps(value, separators=separators, ensure_ascii=False)), value
    for value in others:
        assert not judge.is_valid(value)
        assert not allows(served, grammar, json.dumps(value, separators=(",", ":"), ensure_ascii=False)), value


REFUSED: list[tuple[dict[str, Any], str]] = [  # a schema, and what the message names
    (ARRAY | {"uniqueItems": True}, "'uniqueItems' (#)"),
    (closed(a=ARRAY | {"contains": INTEGER}), "'contains' (#/properties/a)"),
    (ARRAY | {"items": {"not": INTEGER}}, "'not' (#/items)"),
    (OBJECT | {"propertyNames": {"maxLength": 2}}, "'propertyNames'"),
    (OBJECT | {"properties": {"a": INTEGER}, "propertyNames": {"enum": ["a"]}}, "'propertyNames'"),
    (OBJECT | {"dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
    (OBJECT | {"dependentSchemas": {}}, "'dependentSchemas'"),
    (OBJECT | {"if": {}, "then": {}}, "'if'"),
    ({"anyOf": [closed(a=INTEGER)], "unevaluatedProperties": False}, "'unevaluatedProperties'"),
    (ARRAY | {"prefixItems": [INTEGER], "unevaluatedItems": False}, "'unevaluatedItems'"),
    ({"$dynamicRef": "#a"}, "'$dynamicRef'"),
    ({"oneOf": [INTEGER, NUMBER | {"minimum": 5}]}, "'oneOf' (#)"),
    ({"oneOf": [closed(a=INTEGER), OBJECT]}, "'oneOf'"),
    ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "'oneOf'"),
    (OBJECT | {"additionalProperties": True, "minProperties": 3}, "'minProperties'"),
    (INTEGER | {"minimum": 1, "exclusiveMinimum": True}, "'exclusiveMinimum'"),
    (INTEGER | {"multipleOf": 12345}, "'multipleOf'"),
    (INTEGER | {"multipleOf": 10_000}, "'multipleOf'"),
    (NUMBER | {"multipleOf": float("nan")}, ""),
    ({"allOf": [INTEGER | {"multipleOf": 97}, {"multipleOf": 89}]}, "'multipleOf'"),
    (closed(a={"$id": "x", "type": "integer"}), "'$id'"),
    (STRING | {"format": "regex"}, "format: regex"),
    (STRING | {"format": "regex", "x-guidance": {"lenient": True}}, "format: regex"),
    (closed(a=STRING | {"pattern": "^(?!a)b$"}), "'pattern' (#/properties/a)"),
    ({"$ref": "https://example.org/schema"}, "https://example.org/schema"),
    ({"$ref": "#/$defs/none"}, "/$defs/none"),
    ({"type": "strin"}, "strin"),
    (INTEGER | {"minimum": 5, "maximum": 3}, "minimum (5)"),
    (closed(a=False), "'a'"),
    (STRING | {"minLength": -1}, "minLength"),
    ({"properties": [1]}, "properties"),
    ({"enum": [f"value {i}" for i in range(20_000)]}, "characters"),
]


@pytest.mark.parametrize("schema, named", REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_what_answers_could_not_be_held_to_is_refused_by_name(served: Any, schema: Any, named: str) -> None:
    with pytest.raises(InputError) as refused:
        json_schema_grammar(served, schema)
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_a_schema_that_is_merely_deep_is_refused(served: Any) -> None:
    def chain(length: int) -> dict[str, Any]:
        links: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
        return {"$ref": "#/$defs/d0", "$defs": links | {f"d{length}": INTEGER}}

    assert allows(served, json_schema_grammar(served, chain(200)), "7")
    with pytest.raises(InputError, match=r"'\$ref'.*256 levels"):
        json_schema_grammar(served, chain(300))


def test_a_trial_that_exceeds_its_time_ends_itself_alone(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    many = closed(**{f"p{i}": STRING | {"maxLength": 9} for i in range(200)})
    with monkeypatch.context() as brief:
        brief.setattr("tutelage.server.vocabulary.SECONDS", 0.001)
        with pytest.raises(InputError, match="needs too much time"):
            json_schema_grammar(served, many)
    assert json_schema_grammar(served, many | {"title": "again"}).shortest


def test_grammars_are_kept_and_their_number_is_bounded(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.server.vocabulary.CACHED", 2)
    first, second = (json_schema_grammar(served, INTEGER | {"minimum": i}) for i in (1, 2))
    assert json_schema_grammar(served, INTEGER | {"minimum": 1}) is first
    json_schema_grammar(served, INTEGER | {"minimum": 3})
    assert json_schema_grammar(served, INTEGER | {"minimum": 1}) is first
    assert json_schema_grammar(served, INTEGER | {"minimum": 2}) is not second
    first.failed = True
    assert json_schema_grammar(served, INTEGER | {"minimum": 1}) is not first


def test_a_burst_of_requests_compiles_a_new_schema_once_and_none_is_refused(served: Any) -> None:
    """24 callers at once with three new schemas; callers whose schema is known go first."""
    made: list[str] = []
    new = served.vocabulary._new

    def slow(rules: str, schemas: Any) -> Any:
        made.append(rules)
        time.sleep(0.05)
        return new(rules, schemas)

    schemas = [INTEGER | {"title": f"burst {i}"} for i in range(3)]
    known = json_schema_grammar(served, STRING)

    async def burst() -> list[Any]:
        calls = [partial(json_schema_grammar, served, schemas[i % 3]) for i in range(24)]
        waiting = [asyncio.create_task(served.vocabulary.when_free(call)) for call in calls]
        await asyncio.sleep(0.02)
        begun = time.monotonic()
        assert await served.vocabulary.when_free(partial(json_schema_grammar, served, STRING)) is known
        assert time.monotonic() - begun < 0.05 and len(made) == 1
        return await asyncio.gather(*waiting)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(served.vocabulary, "_new", slow)
        grammars = asyncio.run(burst())
    assert len(made) == 3 and len({id(grammar) for grammar in grammars}) == 3


def test_a_refusal_is_worked_out_once(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = STRING | {"pattern": "(", "title": "once"}
    with pytest.raises(InputError) as first:
        json_schema_grammar(served, schema)
    monkeypatch.setattr(served.vocabulary, "_new", None)
    with pytest.raises(InputError, match=re.escape(str(first.value))):
        json_schema_grammar(served, schema)


def test_other_grammars_use_schemas_and_control_tokens(served: Any) -> None:
    end = served.tokenizer.special["<|user|>"]
    grammar = lark_grammar(served, f'start: ("call " @one | "say " @two) <[{end}]>', {"one": INTEGER, "two": STRING})
    rule = grammar.begin()
    for token in [*served.tokenizer.encode('say "a"'), end]:
        assert rule._matcher.validate_tokens([token]) == 1
        rule.take(token, 99)
    assert rule.ended
