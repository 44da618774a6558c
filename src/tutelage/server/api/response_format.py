"""`response_format` of a chat completion: text, any JSON object, or JSON that fits a schema.

ResponseFormat -> the grammar of the answer, None for text
"""

from collections.abc import Mapping
from typing import Any

from tutelage.errors import InputError
from tutelage.server.api.schemas import ResponseFormat
from tutelage.server.grammar import json_object_grammar, json_schema_grammar
from tutelage.server.grammar_constraint import Grammar
from tutelage.server.registry import Served
from tutelage.web.errors import ApiError


def grammar_of(served: Served, wanted: ResponseFormat | None) -> Grammar | None:
    """Raises ApiError, naming the keyword, for a schema that answers could not be held to."""
    if wanted is None or wanted.type == "text":
        return None
    schema = wanted.json_schema.schema_ if wanted.json_schema and wanted.type == "json_schema" else None
    try:
        return json_object_grammar(served) if schema is None else json_schema_grammar(served, schema)
    except InputError as error:
        message = f"This server cannot hold an answer to the schema in response_format: {error}"
        raise ApiError(400, message, param="response_format", code="unsupported_schema") from None


def schema_of(wanted: ResponseFormat | None) -> Mapping[str, Any] | None:
    """The schema of the answer; None for text."""
    if wanted is None or wanted.type == "text":
        return None
    return (wanted.json_schema and wanted.json_schema.schema_) or {"type": "object"}
