"""Answers from a server that speaks OpenAI's API: `tutelage serve` or any other.

    address, model, messages, settings  ->  POST /v1/chat/completions with "stream"  ->  text, piece by piece

Uses only the standard library, so that chatting does not need OpenAI's client. To stop an answer, close its iterator:
the server sees the connection end.
"""

import contextlib
import json
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tutelage.errors import InputError

TIMEOUT = 600.0  # seconds without a byte; a slow machine needs long for a long prompt


class ContextFullError(Exception):
    """The conversation is longer than the model's context."""


class RemoteModel:
    """One model of a server. `address` is http(s)://host[:port], with or without /v1."""

    def __init__(self, address: str, key: str = "", model: str = ""):
        """Without `model`, takes the first policy that the server lists. Raises InputError if that fails."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"{address}: not the address of a server; give http://host:port")
        self.base = address.rstrip("/").removesuffix("/v1") + "/v1"
        self.headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self.model = model or self._first_policy()

    def answer(self, body: dict[str, Any]) -> Iterator[str]:
        """Yield one answer piece by piece. Raises ContextFullError, or InputError with the server's message."""
        finished = False
        response = self._request("/chat/completions", body | {"model": self.model, "stream": True})
        with response as lines, readable_errors(self.base):
            for line in lines:
                data = line.decode("utf-8").strip().removeprefix("data:").strip() if line.startswith(b"data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    event = json.loads(data)
                    yield text_of(event)
                    finished |= any(choice.get("finish_reason") for choice in event["choices"])
        if not finished:
            raise broken_off(self.base, "the connection was closed")

    def _first_policy(self) -> str:
        """The first model that can answer; `tutelage serve` lists reward models as well."""
        with self._request("/models") as response, readable_errors(self.base):
            policies = [model["id"] for model in json.load(response)["data"] if model.get("kind", "policy") == "policy"]
        if not policies:
            raise InputError(f"{self.base}: the server has no model loaded")
        return policies[0]

    def _request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = Request(self.base + path, json.dumps(body).encode() if body else None, self.headers)
        try:
            return urlopen(request, timeout=TIMEOUT)
        except HTTPError as error:
            raise refusal(error, self.base) from None
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise InputError(f"{self.base}: no answer ({reason}); is the server running there?") from None


@contextlib.contextmanager
def readable_errors(base: str) -> Iterator[None]:
    """Turns anything that can go wrong while a response is read into an InputError of one line."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise broken_off(base, str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{base}: not an OpenAI-compatible API; check the address") from None


def broken_off(base: str, why: str) -> InputError:
    return InputError(f"{base}: the answer broke off ({why}); is the server still running?")


def text_of(event: dict[str, Any]) -> str:
    """The text that one event of the stream adds. Raises InputError for an error that the server reports midway."""
    if "error" in event:
        raise InputError(f"the server stopped with an error: {event['error'].get('message')}")
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"][:1])


def refusal(error: HTTPError, base: str) -> Exception:
    """The exception that tells the user why the server refused the request."""
    details: dict[str, Any] = {}
    with contextlib.suppress(ValueError, AttributeError):
        details = json.loads(error.read()).get("error") or {}
    if details.get("code") == "context_length_exceeded":
        return ContextFullError()
    message = str(details.get("message") or error.reason)
    hint = "; give the key with --key-file" if error.code == 401 else ""
    if error.code in (400, 422) and "min_p" in message:  # not in OpenAI's API, but `tutelage chat` sends it by default
        hint = "; leave it out with --min-p 0, or /min-p 0 in the chat"
    return InputError(f"{base}: {error.code} {message}{hint}")
