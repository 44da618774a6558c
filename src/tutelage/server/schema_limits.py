"""Limits of a JSON schema: what would make the library compile for long, or too deep.

bound_depth(schema, definitions), bound_multiples(schema)  ->  nothing, or InputError
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from math import isfinite, lcm
from typing import Any, TypeGuard

from tutelage.errors import InputError
from tutelage.server.disjoint import Disjoint

DEFINITIONS = ("$defs", "definitions")
DEEPEST = 256  # levels of JSON, through references
MOST_MULTIPLE = 1000  # the library's work grows with it


def bound_depth(schema: Mapping[str, Any], definitions: Disjoint) -> None:
    """Refuse a schema that is nested deeply through its references; the library compiles it recursively."""
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    seen: set[str] = set()
    while waiting:
        part, depth = waiting.pop()
        if depth > DEEPEST:
            raise InputError(f"the keyword '$ref' nests it more than {DEEPEST} levels deep; shorten the chain")
        waiting += [(inner, depth + 1) for inner in reversed(list(_inner(part, definitions, seen)))]


def _inner(part: Any, definitions: Disjoint, seen: set[str]) -> Iterator[Any]:
    """The lists and objects in a part of a schema, in order, and what it refers to, which the library reads once."""
    if isinstance(part, list):
        yield from part
    for name, inner in part.items() if isinstance(part, Mapping) else ():
        if name == "$ref" and isinstance(inner, str) and inner not in seen:
            seen.add(inner)
            yield definitions.target(inner)
        elif name not in DEFINITIONS and isinstance(inner, Mapping | list):
            yield inner


def bound_multiples(schema: Mapping[str, Any]) -> None:
    """Refuse divisors with many digits. Of several, their least common multiple counts, without its decimal point."""
    divisors = sorted({Decimal(str(abs(value))).normalize() for value in _divisors(schema)} - {Decimal(0)})
    decimals = -min((0, *map(_exponent, divisors)))
    common = 1
    for divisor in divisors:
        zeros = min(decimals + _exponent(divisor), 9)
        common = lcm(common, int(divisor.scaleb(-_exponent(divisor))) * 10**zeros)
        if common > MOST_MULTIPLE:
            named = ", ".join(f"{value:g}" for value in divisors[:9])
            message = f"{named}: their least common multiple may have the digits of 1 to {MOST_MULTIPLE:,}"
            raise InputError(f"the keyword 'multipleOf' is {message}")


def _divisors(schema: Any) -> Iterator[float]:
    """The values of all keywords multipleOf in a schema; also those of properties with that name, which is harmless."""
    if isinstance(schema, Mapping):
        if is_number(divisor := schema.get("multipleOf")) and isfinite(divisor):
            yield divisor
        schema = schema.values()
    if not isinstance(schema, str | int | float | None):
        for part in schema:
            yield from _divisors(part)


def _exponent(value: Decimal) -> int:
    return int(value.as_tuple().exponent)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
