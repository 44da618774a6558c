"""schemathesis with our OpenAPI description: no request gets a 500 or an undocumented response."""

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
EXAMPLES = 12  # valid requests per operation, and as many invalid ones; the slow test sends thousands


def send(operation, mode: GenerationMode, headers: dict[str, str]) -> int:
    sent = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
    def one(case) -> None:
        nonlocal sent
        sent += 1
        case.call_and_validate(headers=headers, checks=CHECKS)

    one()
    return sent


def test_whatever_is_sent_the_answer_is_documented(serving) -> None:
    s = serving("the cat 你好", key={"scopes": ("inference", "admin")})
    s.app.state.registry.load = lambda run: s.app.state.registry.get("stub")
    s.app.state.registry.unload = lambda name: None
    headers = {"authorization": f"Bearer {s.secret}"}
    schema = schemathesis.openapi.from_dict(s.app.openapi())
    schema.app = s.app
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 14
    for operation in operations:
        assert send(operation, GenerationMode.POSITIVE, headers)
        if operation.body or list(operation.query):  # a path cannot be invalid
            send(operation, GenerationMode.NEGATIVE, headers)
