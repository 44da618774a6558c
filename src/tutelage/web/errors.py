"""Errors as responses: OpenAI's error shape for programs, a page for people.

    raise ApiError(404, "The model 'x' does not exist.", code="model_not_found", param="model")

FastAPI's own errors (an invalid field, an unknown URL, a wrong method) get the same shape. The official clients read
only `error.message`, `.type`, `.param` and `.code`.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from tutelage.store.database import StorageError
from tutelage.web.json_pieces import joined
from tutelage.web.logs import note

TYPES = {401: "authentication_error", 403: "permission_error", 429: "requests"}
KINDS = ("function-", "list[", "constrained-")  # how pydantic names the members of a union within a path
log = logging.getLogger(__name__)
OUTSIDE_V1 = {"/metrics", "/tokenize", "/detokenize", "/tokenizer_info"}  # routes of the API without /v1
FINAL = (409, 500, 501)  # OpenAI's clients retry these by default, but the result would be the same


class ApiError(HTTPException):
    """An error response in the shape that OpenAI's clients expect."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, dict(headers or {}))
        default = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
        self.body = {"message": message, "type": type or default, "param": param, "code": code}
        self.reason = code or type or default


def refusal(error: ApiError | StorageError) -> ApiError:
    """The error as an ApiError. A StorageError is also logged."""
    if isinstance(error, ApiError):
        return error
    log.error("%s", error)
    if not (error.full or error.damaged):
        message = "The server's database is not responding. Try again soon."
        return ApiError(503, message, code="storage_unavailable", headers={"retry-after": "1"})
    later = {"x-should-retry": "false"}  # OpenAI's clients would retry within seconds, too soon
    if error.damaged:
        message = "The server's database is damaged. The server's log says how."
        return ApiError(503, message, code="storage_damaged", headers=later)
    message = "The server cannot store anything: its disk is full or failing. What was stored before is safe."
    return ApiError(503, message, code="storage_full", headers=later)


class JSON(Response):
    """Compact JSON in UTF-8, without NaN. The content may be bytes that are JSON already."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else joined(content)


def dump(content: Any) -> bytes:
    """One line of JSON. A lone surrogate, which UTF-8 cannot encode, becomes a question mark."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def envelope(error: ApiError) -> JSON:
    """The error in OpenAI's shape; it is also noted in the request's log line."""
    note(error=error.reason)
    headers = dict(error.headers or {})
    if error.status_code in FINAL:
        headers["x-should-retry"] = "false"
    return JSON({"error": error.body}, error.status_code, headers)


def install(app: FastAPI) -> None:
    """Register handlers that turn all errors of an app into OpenAI's shape, or a page for browsers."""
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_error)
    app.add_exception_handler(StorageError, _handle_error)


async def _handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    is_json = "json" in request.headers.get("content-type", "")
    if first["loc"] == ("body",) and first["type"] != "missing" and not is_json:
        message = "The body must be JSON: send it with content-type: application/json."
        return await _handle_error(request, ApiError(415, message, code="unsupported_media_type"))
    return await _handle_error(request, validation_error(error.errors()))


async def _handle_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException | StorageError)
    if isinstance(error, ApiError | StorageError):
        error = refusal(error)
    else:
        error = _from_http_exception(request, error)
    if wants_page(request.scope):
        note(error=error.reason)
        return request.app.state.pages.error(request, error)
    return envelope(error)


def wants_page(scope: Mapping[str, Any]) -> bool:
    """Whether a browser requests a page, as opposed to a program or script that requests data."""
    accept = dict(scope["headers"]).get(b"accept", b"")
    return not is_api(scope["path"]) and b"text/html" in accept


def is_api(path: str) -> bool:
    """Whether the path belongs to the API, which takes keys in a header and never a cookie."""
    return path == "/v1" or path.startswith("/v1/") or path in OUTSIDE_V1


def lacks_v1(scope: Scope) -> bool:
    """Whether a program requests a path of the API without /v1, or sends a key to a path that does not exist."""
    routes = scope["app"].routes

    def matched(path: str) -> list[Match]:
        return [match for route in routes if (match := route.matches({**scope, "path": path})[0]) is not Match.NONE]

    if wants_page(scope) or is_api(scope["path"]):
        return False
    has_key = b"authorization" in dict(scope["headers"])
    return bool(matched("/v1" + scope["path"])) or (has_key and Match.FULL not in matched(scope["path"]))


def unknown_url(method: str, path: str) -> ApiError:
    """The error for a path that does not exist."""
    hint = ""
    if not is_api(path):
        hint = ". The base URL of the API is this server's address + /v1."
        hint += "" if "/v1/" in path else f" Did you mean {method} /v1{path}?"
    return ApiError(404, f"Invalid URL ({method} {path}){hint}", code="unknown_url")


def validation_error(errors: Any) -> ApiError:
    """The most useful of pydantic's errors, with the field as a dotted path.

    A field that accepts several types has one error per type. The error of the type that the value has is reported.
    """
    first = next((error for error in errors if not error["type"].endswith("_type")), errors[0])
    path = [str(part) for part in first["loc"][1:]]  # loc[0] is body, query or path
    param = ".".join(part for part in path if part != "str" and not part.startswith(KINDS)) or None
    if first["type"] == "missing":
        if param is None:
            return ApiError(400, "The body is empty: it must be a JSON object.", code="invalid_json")
        return ApiError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {first['ctx']['error']}.", code="invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_unicode":
        message = "a lone surrogate is not a character"
    about = f"Invalid value for '{param}': {message}." if param else f"Invalid request: {message}."
    return ApiError(400, about, param=param, code="invalid_value")


def _why_not_json(cause: BaseException) -> str:
    if isinstance(cause, RecursionError):
        return "it is nested too deeply"
    return "it is not UTF-8" if isinstance(cause, UnicodeDecodeError) else "it has a number with too many digits"


def _from_http_exception(request: Request, error: HTTPException) -> ApiError:
    if error.status_code == 404:
        return unknown_url(request.method, request.url.path)
    if error.status_code == 400 and isinstance(error.__cause__, RecursionError | ValueError):  # of the JSON parser
        return ApiError(400, f"The body is not valid JSON: {_why_not_json(error.__cause__)}.", code="invalid_json")
    if error.status_code == 405:
        message = f"Not allowed to {request.method} on {request.url.path}."
        return ApiError(405, message, code="method_not_supported", headers=error.headers)
    return ApiError(error.status_code, str(error.detail), headers=error.headers)
