"""What a caller is told when something does not go: OpenAI's envelope for programs, a page for people.

    raise ApiError(404, "The model 'x' does not exist.", code="model_not_found", param="model")

FastAPI's own answers (a field that does not fit, an unknown address, a wrong method) are put into the same envelope:
the official clients read `error.message`, `.type`, `.param` and `.code`, and nothing else.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tutelage.store.database import StorageError
from tutelage.web.logs import note

TYPES = {401: "authentication_error", 403: "permission_error", 429: "requests"}
KINDS = ("function-", "list[", "constrained-")  # pydantic names the members of a union, too
log = logging.getLogger(__name__)
FINAL = (409, 500, 501)  # the clients would try these again by themselves; the answer would be the same


class ApiError(HTTPException):
    """An answer that is no success, as OpenAI's clients expect it."""

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
    """The same as an answer; what the store could not take is said in the log, too."""
    if isinstance(error, ApiError):
        return error
    log.error("%s", error)
    if not error.full:
        return ApiError(503, "The server's database does not answer. Try again soon.", code="storage_unavailable")
    message = "The server cannot store anything now: its disk is full or fails. What was stored before is safe."
    return ApiError(503, message, code="storage_full", headers={"x-should-retry": "false"})  # not in a few seconds


class JSON(Response):
    """UTF-8 as it is, no NaN, no spaces."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dump(content)


def dump(content: Any) -> bytes:
    """One line of JSON. A lone surrogate, which no UTF-8 can say, becomes a question mark."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def envelope(error: ApiError) -> JSON:
    note(error=error.reason)
    headers = dict(error.headers or {})
    if error.status_code in FINAL:
        headers["x-should-retry"] = "false"
    return JSON({"error": error.body}, error.status_code, headers)


def install(app: FastAPI) -> None:
    """Put every error of an app into the envelope; people's pages have their own view of them."""
    app.add_exception_handler(RequestValidationError, _unfitting)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(StorageError, _refused)


async def _unfitting(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if (
        first["loc"] == ("body",)
        and first["type"] != "missing"
        and "json" not in request.headers.get("content-type", "")
    ):
        message = "The body must be JSON: send it with content-type: application/json."
        return await _refused(request, ApiError(415, message, code="unsupported_media_type"))
    return await _refused(request, validation_error(error.errors()))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException | StorageError)
    if isinstance(error, ApiError | StorageError):
        error = refusal(error)
    else:
        error = _in_words(request, error)
    if wants_page(request.scope):
        note(error=error.reason)
        return request.app.state.pages.error(request, error)
    return envelope(error)


def wants_page(scope: Mapping[str, Any]) -> bool:
    """Whether a browser is asking to see a page, not a program for data."""
    accept = dict(scope["headers"]).get(b"accept", b"")
    return not is_api(scope["path"]) and b"text/html" in accept


def is_api(path: str) -> bool:
    """Paths for programs: their key comes in a header, never in a cookie."""
    return path.startswith("/v1/") or path == "/metrics"


def validation_error(errors: Any) -> ApiError:
    """The first of pydantic's complaints, with the field as a dotted path.

    A value that may be of several types has one for each; what is said of the type that fits is the one to tell.
    """
    first = next((error for error in errors if not error["type"].endswith("_type")), errors[0])
    place = [str(part) for part in first["loc"][1:]]  # the first part says body, query or path
    param = ".".join(part for part in place if part != "str" and not part.startswith(KINDS)) or None
    if first["type"] == "missing":
        if param is None:
            return ApiError(400, "The body is empty: it must be a JSON object.", code="invalid_json")
        return ApiError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {first['ctx']['error']}.", code="invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    about = f"Invalid value for '{param}': {message}." if param else f"Invalid request: {message}."
    return ApiError(400, about, param=param, code="invalid_value")


def _in_words(request: Request, error: HTTPException) -> ApiError:
    asked = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return ApiError(404, f"Invalid URL ({asked})", code="unknown_url")
    if error.status_code == 405:
        message = f"Not allowed to {request.method} on {request.url.path}."
        return ApiError(405, message, code="method_not_supported", headers=error.headers)
    return ApiError(error.status_code, str(error.detail), headers=error.headers)
