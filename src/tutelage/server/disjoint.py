"""Whether two JSON schemas exclude each other: `oneOf` of such schemas allows the same values as `anyOf`.

Disjoint(root).disjoint(first, second) -> True only if no value fits both
"""

from collections.abc import Mapping
from typing import Any

TYPES = frozenset(("null", "boolean", "number", "string", "array", "object"))
DEPTH = 8  # of references followed, and of properties within properties


class Disjoint:
    """Compares schemas within a root, which has the definitions that they refer to."""

    def __init__(self, root: Mapping[str, Any]):
        self.root = root
        self._found: dict[int, tuple[Any, Any, Any]] = {}  # by a schema's identity: it, its types and its values

    def disjoint(self, first: Any, second: Any, depth: int = DEPTH) -> bool:
        """Whether it is certain that no value fits both schemas."""
        a, b = self.resolved(first), self.resolved(second)
        if not isinstance(a, Mapping) or not isinstance(b, Mapping):
            return a is False or b is False
        (types, values), (other_types, others) = self._kinds(a), self._kinds(b)
        shared = types & other_types
        if not shared or (values is not None and others is not None and not values & others):
            return True
        names = {*required_names(a), *required_names(b)} if shared == {"object"} and depth else ()
        return any(self.disjoint(_property(a, name), _property(b, name), depth - 1) for name in names)

    def _kinds(self, schema: Mapping[str, Any]) -> tuple[frozenset[str], set[tuple[str, Any]] | None]:
        """Types and values of a schema, which is compared with many."""
        if id(schema) not in self._found:
            self._found[id(schema)] = schema, _types(schema), _values(schema)
        return self._found[id(schema)][1:]

    def resolved(self, schema: Any) -> Any:
        """The schema that a reference leads to, with what is required beside it. True (any value) if unknown.

        Whatever else stands beside the reference is left out, so more values fit than in truth.
        """
        for _ in range(DEPTH):
            reference = schema.get("$ref") if isinstance(schema, Mapping) else None
            if reference is None:
                return schema
            target = self.target(reference)
            if not isinstance(target, Mapping):
                return True
            schema = {**target, "required": [*required_names(target), *required_names(schema)]}
        return True

    def target(self, reference: Any) -> Any:
        """What a reference within the root points to; None if it cannot be found."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return None
        target: Any = self.root
        for step in reference.split("/")[1:]:
            target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
        return target


def required_names(schema: Mapping[str, Any]) -> list[str]:
    """The names in `required`."""
    names = schema.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    """The types that a value may have. An integer is a number."""
    named, values = schema.get("type"), _values(schema)
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else TYPES
    types = {"number" if name == "integer" else name for name in names if isinstance(name, str)}
    return frozenset(types if values is None else types & {kind for kind, _ in values})


def _values(schema: Mapping[str, Any]) -> set[tuple[str, Any]] | None:
    """The values that `const` or `enum` allows; None without either."""
    if "const" in schema:
        return {_comparable(schema["const"])}
    values = schema.get("enum")
    return {_comparable(value) for value in values} if isinstance(values, list) else None


def _comparable(value: Any) -> tuple[str, Any]:
    """(type, value) of a JSON value. In JSON 1 and 1.0 are equal, and 1 and true are not."""
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "boolean"), value
    if isinstance(value, int | float):
        return "number", value
    if isinstance(value, list):
        return "array", tuple(map(_comparable, value))
    if isinstance(value, Mapping):
        return "object", frozenset((name, _comparable(part)) for name, part in value.items())
    return "string", value


def _property(schema: Mapping[str, Any], name: str) -> Any:
    """The schema of a property; True (any value) if several keywords decide."""
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and name in properties:
        return properties[name]
    return True if "patternProperties" in schema else schema.get("additionalProperties", True)
