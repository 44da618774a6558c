"""JSON schemas of many kinds, each with one of its shortest values, for benchmarks/structured_output.py and the tests.

schemas(200, seed=0) -> [(kind, schema, value), ...]
"""

import random
from collections.abc import Callable
from typing import Any

Case = tuple[Any, Any]  # a schema, and one of its shortest values
WORDS = "name title city color size note owner count level state email phone start total group label price unit".split()


def schemas(count: int, seed: int) -> list[tuple[str, Any, Any]]:
    """(kind, schema, value) in turn of all kinds, with random sizes and names."""
    chance = random.Random(seed)
    kinds = list(KINDS.items())
    return [(name, *make(chance)) for name, make in (kinds[i % len(kinds)] for i in range(count))]


def closed(parts: dict[str, Case], optional: tuple[str, ...] = ()) -> Case:
    """An object with these properties and no others."""
    properties = {name: schema for name, (schema, _) in parts.items()}
    required = [name for name in parts if name not in optional]
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return schema, {name: parts[name][1] for name in required}


def names(chance: random.Random, count: int) -> list[str]:
    return chance.sample(WORDS, count)


def scalar(chance: random.Random) -> Case:
    low = chance.randint(-50, 50)
    return chance.choice(
        [
            ({"type": "string"}, ""),
            ({"type": "string", "maxLength": chance.randint(1, 30)}, ""),
            ({"type": "integer"}, 0),
            ({"type": "integer", "minimum": low, "maximum": low + 60}, max(low, min(0, low + 60))),
            ({"type": "number"}, 0),
            ({"type": "boolean"}, True),
            ({"type": "null"}, None),
            ({"type": ["string", "null"]}, ""),
            ({"enum": chance.sample(WORDS, 3)}, None),
        ]
    )


def fixed(case: Case) -> Case:
    """Gives an enum its shortest value."""
    schema, value = case
    return (schema, min(schema["enum"], key=len)) if "enum" in schema else (schema, value)


def flat(chance: random.Random) -> Case:
    return closed({name: fixed(scalar(chance)) for name in names(chance, chance.randint(1, 6))})


def nested(chance: random.Random) -> Case:
    inner = flat(chance)
    for _ in range(chance.randint(1, 3)):
        first, second = names(chance, 2)
        inner = closed({first: inner, second: fixed(scalar(chance))})
    return inner


def optional(chance: random.Random) -> Case:
    chosen = names(chance, 5)
    return closed({name: fixed(scalar(chance)) for name in chosen}, tuple(chosen[1 : chance.randint(2, 5)]))


def enums(chance: random.Random) -> Case:
    values: list[Any] = [*chance.sample(WORDS, 4), chance.randint(0, 99), None, True, 0.5]
    first, second, third = names(chance, 3)
    few = chance.sample(values, 3)
    word = chance.choice(WORDS)
    shortest = min(few, key=lambda value: len(str(value)) + 2 * isinstance(value, str))
    return closed({first: ({"enum": few}, shortest), second: ({"const": word}, word), third: ({"const": 7}, 7)})


def arrays(chance: random.Random) -> Case:
    item, value = fixed(scalar(chance))
    least = chance.randint(0, 3)
    schema = {"type": "array", "items": item, "minItems": least, "maxItems": least + chance.randint(0, 5)}
    return closed({chance.choice(WORDS): (schema, [value] * least)})


def arrays_of_objects(chance: random.Random) -> Case:
    item, value = flat(chance)
    least = chance.randint(0, 2)
    return {"type": "array", "items": item, "minItems": least}, [value] * least


def tuples(chance: random.Random) -> Case:
    cases = [fixed(scalar(chance)) for _ in range(chance.randint(1, 4))]
    schema = {"type": "array", "prefixItems": [part for part, _ in cases], "items": False, "minItems": len(cases)}
    return schema, [value for _, value in cases]


def unions(chance: random.Random) -> Case:
    choices = [({"type": "integer"}, 0), flat(chance), ({"type": "array", "items": {"type": "string"}}, [])]
    chance.shuffle(choices)
    first, second = names(chance, 2)
    return closed({first: ({"anyOf": [part for part, _ in choices]}, 0), second: fixed(scalar(chance))})


def tagged(chance: random.Random) -> Case:
    """Objects that one property tells apart, as Pydantic writes them."""
    kinds = chance.sample(WORDS, 3)
    parts = {kind: fixed(scalar(chance)) for kind in kinds}
    cases = [closed({"kind": ({"const": kind, "type": "string"}, kind), "value": parts[kind]}) for kind in kinds]
    definitions = {f"Case{i}": part for i, (part, _) in enumerate(cases)}
    choice = {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in definitions], "discriminator": {"propertyName": "kind"}}
    shortest = min((value for _, value in cases), key=lambda value: len(str(value)))
    schema, value = closed({"item": (choice, shortest)})
    return schema | {"$defs": definitions}, value


def bounds(chance: random.Random) -> Case:
    low, digits = chance.randint(-2000, 2000), chance.choice([1, 2, 5, 10])
    first, second, third, fourth = names(chance, 4)
    return closed(
        {
            first: ({"type": "integer", "minimum": low, "exclusiveMaximum": low + 40}, low),
            second: ({"type": "number", "exclusiveMinimum": 0, "maximum": chance.randint(1, 9)}, 1),
            third: ({"type": "integer", "multipleOf": digits, "minimum": 0, "maximum": 500}, 0),
            fourth: ({"type": "string", "minLength": digits, "maxLength": digits + 4}, "a" * digits),
        }
    )


def patterns(chance: random.Random) -> Case:
    known = [
        ("^[A-Z]{2}-[0-9]{4}$", "AA-0000"),
        ("^[a-z]+(-[a-z]+){2}$", "a-a-a"),
        ("^(red|green|blue)$", "red"),
        (r"^\d{3}\.\d{2}$", "000.00"),
        ("^#[0-9a-f]{6}$", "#000000"),
        ("^v[0-9]+(\\.[0-9]+){1,3}$", "v0.0"),
        ("[0-9]", "0"),
        ("^.{3,8}$", "aaa"),
        ("^[^ ]+ [^ ]+$", "a a"),
    ]
    chosen = chance.sample(known, 3)
    return closed({name: ({"type": "string", "pattern": p}, v) for name, (p, v) in zip(names(chance, 3), chosen)})


def formats(chance: random.Random) -> Case:
    known = {
        "date": "1000-01-01",
        "time": "00:00:00Z",
        "date-time": "1000-01-01T00:00:00Z",
        "uuid": "00000000-0000-0000-0000-000000000000",
        "ipv4": "0.0.0.0",
        "email": "a@a",
        "duration": "P0D",
        "hostname": "a",
    }
    chosen = chance.sample(sorted(known), 2)
    return closed({n: ({"type": "string", "format": f}, known[f]) for n, f in zip(names(chance, 2), chosen)})


def linked_list(chance: random.Random) -> Case:
    word = chance.choice(WORDS)
    return closed({word: ({"type": "integer"}, 0), "next": ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, None)})


def tree(chance: random.Random) -> Case:
    word, many = chance.choice(WORDS), {"type": "array", "items": {"$ref": "#/$defs/node"}}
    node, value = closed({word: fixed(scalar(chance)), "children": (many, [])})
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}, value


def expression(chance: random.Random) -> Case:
    """Every choice but the last leads deeper."""
    inner = ({"$ref": "#/$defs/expression"}, 0)
    operator = ({"enum": chance.sample(["add", "subtract", "multiply", "divide"], 2)}, "add")
    deeper, _ = closed({"operator": operator, "left": inner, "right": inner})
    leaf, value = closed({"value": ({"type": "integer"}, 0)})
    return {"$defs": {"expression": {"anyOf": [deeper, leaf]}}, "$ref": "#/$defs/expression"}, value


def maps(chance: random.Random) -> Case:
    part, value = fixed(scalar(chance))
    if chance.random() < 0.5:
        return {"type": "object", "additionalProperties": part}, {}
    schema = {"type": "object", "patternProperties": {"^x_[a-z]+$": part}, "additionalProperties": False}
    return closed({"map": (schema, {}), "one": (part, value)})


def merged(chance: random.Random) -> Case:
    first, second = names(chance, 2)
    a, b = fixed(scalar(chance)), fixed(scalar(chance))
    halves = [{"type": "object", "properties": {n: p}, "required": [n]} for n, (p, _) in ((first, a), (second, b))]
    closing = {"properties": {first: True, second: True}, "additionalProperties": False}
    return {"allOf": [*halves, closing]}, {first: a[1], second: b[1]}


def annotated(chance: random.Random) -> Case:
    """With the keywords that describe and do not restrict, and references."""
    word = chance.choice(WORDS)
    kind = {"title": "Kind", "description": "which", "enum": ["a", "bb"], "default": "a", "deprecated": True}
    part = {"$ref": "#/$defs/Kind"}
    schema, value = closed({word: (part, "a"), "many": ({"type": "array", "items": part, "maxItems": 3}, [])})
    return schema | {"$defs": {"Kind": kind}, "title": "Answer", "examples": [{"x": 1}]}, value


KINDS: dict[str, Callable[[random.Random], Case]] = {
    function.__name__: function
    for function in (
        flat,
        nested,
        optional,
        enums,
        arrays,
        arrays_of_objects,
        tuples,
        unions,
        tagged,
        bounds,
        patterns,
        formats,
        linked_list,
        tree,
        expression,
        maps,
        merged,
        annotated,
    )
}
