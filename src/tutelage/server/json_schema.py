"""Prepares a JSON schema for llguidance, such that every answer that it allows fits the schema.

    prepared(schema) -> a schema with the same or fewer answers

The library refuses the keywords that it does not implement. Here they are refused earlier, so that the message says
where they are, and so are a few that it would not hold to. Some schemas that clients write are reworded: a `oneOf` of
options that exclude each other is an `anyOf`, and formats of dates leave out days that do not exist.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tutelage.errors import InputError
from tutelage.server.disjoint import Disjoint, required_names
from tutelage.server.schema_limits import bound_depth, bound_multiples, is_number

MAPS = ("properties", "patternProperties", "$defs", "definitions")  # keywords whose value has schemas by name
LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
SINGLE = ("items", "additionalItems", "additionalProperties")
ANNOTATIONS = ("deprecated", "contentSchema")  # without effect; the library would refuse them
REFUSED = (
    "uniqueItems contains minContains maxContains unevaluatedItems unevaluatedProperties propertyNames "
    "dependentRequired dependentSchemas dependencies not if then else $dynamicRef $dynamicAnchor $recursiveRef"
).split()
WITHOUT_EFFECT = {"uniqueItems": False, "unevaluatedItems": True, "unevaluatedProperties": True}
APPLICATORS = ("$ref", "anyOf", "allOf", "oneOf")
MOST_OPTIONS = 100  # of a oneOf, because every two are compared
INTEGERS = 10**18 - 1  # an integer without bounds has at most 18 digits: a small model could write them forever

# A year in four digits, and no 29th of February nor leap second, which many libraries do not read in every year.
DATE = (
    "[1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))"
)
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
FORMATS = {"date": f"^{DATE}$", "time": f"^{TIME}$", "date-time": f"^{DATE}T{TIME}$"}
# Formats of OpenAPI and Pydantic, beyond those of JSON Schema, that exclude no text.
FREE_FORMATS = "password path file-path directory-path binary int32 int64 float double".split()


def prepared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema in the library's words. Raises InputError for what answers could not be held to."""
    definitions = Disjoint(schema)
    bound_depth(schema, definitions)
    result = _prepared(schema, "#", definitions)
    bound_multiples(result)
    return result


def _prepared(schema: Any, place: str, options: Disjoint) -> Any:
    """A schema within the root, at this place. What is not a schema is left for the library to refuse."""
    if not isinstance(schema, Mapping):
        return schema
    result = {name: value for name, value in schema.items() if name not in ANNOTATIONS}
    _reword_property_names(result, options)
    _refuse(result, place)
    _close(result)
    _bound_integers(result, place)
    _bound_properties(result, place)
    _reword_format(result)
    _reword_one_of(result, place, options)
    return dict(_with_parts(result, place, options))


def _with_parts(schema: Mapping[str, Any], place: str, options: Disjoint) -> Iterator[tuple[str, Any]]:
    """The schema's keywords, with the schemas in them prepared."""
    for name, value in schema.items():
        at = f"{place}/{name}"
        if name in MAPS and isinstance(value, Mapping):
            yield name, {key: _prepared(part, f"{at}/{key}", options) for key, part in value.items()}
        elif name in LISTS and isinstance(value, list):
            yield name, [_prepared(part, f"{at}/{i}", options) for i, part in enumerate(value)]
        else:
            yield name, _prepared(value, at, options) if name in SINGLE else value


def _refuse(schema: dict[str, Any], place: str) -> None:
    """Refuse keywords that the library does not implement. Leaves out those without effect."""
    for keyword, value in WITHOUT_EFFECT.items():
        if schema.get(keyword) is value:
            del schema[keyword]
    if isinstance(pattern := schema.get("pattern"), str) and re.search(r"\(\?<?[=!]", pattern):
        raise InputError(f"the keyword 'pattern' ({place}) has look-around, which is not supported: {pattern}")
    closed = schema.get("unevaluatedProperties") is False and not any(name in schema for name in APPLICATORS)
    for keyword in REFUSED:
        if keyword in schema and not (keyword == "unevaluatedProperties" and closed):
            raise InputError(f"the keyword {keyword!r} ({place}) is not supported")
    for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(keyword), bool):
            raise InputError(f"the keyword {keyword!r} ({place}) is a boolean, as in draft 4; give the number itself")
    if "$id" in schema and place != "#":
        raise InputError(f"the keyword '$id' ({place}) is supported only at the top")


def _close(schema: dict[str, Any]) -> None:
    """Without other schemas beside it, unevaluatedProperties says the same as additionalProperties."""
    if "unevaluatedProperties" in schema:
        schema.setdefault("additionalProperties", schema.pop("unevaluatedProperties"))


def _reword_property_names(schema: dict[str, Any], options: Disjoint) -> None:
    """Say `propertyNames` by other keywords, if it lists the names or has a pattern for them."""
    names = options.resolved(schema.get("propertyNames"))
    if not isinstance(names, Mapping) or "properties" in schema or "patternProperties" in schema:
        return
    says = {name for name, said in names.items() if name not in ("type", "title", "description") and said != []}
    value = schema.get("additionalProperties", True)
    if says == {"enum"} and isinstance(names["enum"], list):
        allowed = {"properties": {name: value for name in names["enum"] if isinstance(name, str)}}
    elif says == {"pattern"}:
        allowed = {"patternProperties": {names["pattern"]: value}}
    elif not says and names.get("type") == "string":
        allowed = {"additionalProperties": value}
    else:
        return
    del schema["propertyNames"]
    schema |= {"additionalProperties": False} | allowed


def _bound_integers(schema: dict[str, Any], place: str) -> None:
    """Give an integer the bounds that it lacks."""
    named = schema.get("type")
    integer = named == "integer" or (isinstance(named, list) and "integer" in named and "number" not in named)
    if not integer or "const" in schema or "enum" in schema:
        return
    lowest = [schema[name] for name in ("minimum", "exclusiveMinimum") if is_number(schema.get(name))]
    highest = [schema[name] for name in ("maximum", "exclusiveMaximum") if is_number(schema.get(name))]
    if max(lowest, default=-INTEGERS - 1) < -INTEGERS:
        schema.pop("exclusiveMinimum", None)
        schema["minimum"] = -INTEGERS
    if min(highest, default=INTEGERS + 1) > INTEGERS:
        schema.pop("exclusiveMaximum", None)
        schema["maximum"] = INTEGERS


def _bound_properties(schema: dict[str, Any], place: str) -> None:
    """Refuse to count properties with free names, because the library lets a name occur twice."""
    least, required = schema.get("minProperties"), len(set(required_names(schema)))
    if not is_number(least):
        return
    if least <= required:
        del schema["minProperties"]
    elif least > required + 1:
        raise InputError(
            f"the keyword 'minProperties' ({place}) is {least} with {required} required properties; "
            f"it may be {required + 1}, or name more in 'required'"
        )


def _reword_format(schema: dict[str, Any]) -> None:
    """Replace formats by patterns of ours, and leave out those that say nothing."""
    name = schema.get("format")
    if name in FREE_FORMATS:
        del schema["format"]
    elif isinstance(name, str) and name in FORMATS:
        del schema["format"]
        _add(schema, "pattern", FORMATS[name])


def _reword_one_of(schema: dict[str, Any], place: str, options: Disjoint) -> None:
    """Make `oneOf` an `anyOf` if its options exclude each other. A discriminator's property is required."""
    choices = schema.pop("oneOf", None)
    chosen_by = schema.pop("discriminator", None)
    if choices is None:
        return
    if not isinstance(choices, list) or len(choices) > MOST_OPTIONS:
        raise InputError(f"the keyword 'oneOf' ({place}) must be a list of at most {MOST_OPTIONS} schemas")
    if isinstance(chosen_by, Mapping) and isinstance(chosen_by.get("propertyName"), str):
        choices = [_requiring(choice, chosen_by["propertyName"]) for choice in choices]
    pairs = ((a, b) for i, a in enumerate(choices) for b in choices[:i])
    if not all(options.disjoint(a, b) for a, b in pairs):
        message = "is supported only if no value can fit two of its schemas; use 'anyOf'"
        raise InputError(f"the keyword 'oneOf' ({place}) {message}")
    _add(schema, "anyOf", choices)


def _requiring(option: Any, name: str) -> Any:
    """An object's schema in which this property is required."""
    if not isinstance(option, Mapping):
        return option
    return {**option, "required": list(dict.fromkeys([*required_names(option), name]))}


def _add(schema: dict[str, Any], keyword: str, value: Any) -> None:
    """Add a keyword to a schema that may already have it."""
    if keyword not in schema:
        schema[keyword] = value
    elif isinstance(parts := schema.get("allOf", []), list):
        schema["allOf"] = [*parts, {keyword: value}]
