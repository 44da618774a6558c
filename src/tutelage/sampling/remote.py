"""Answers from a server that speaks OpenAI's API, ours or another's.

    address, model, messages, settings  ->  POST /v1/chat/completions with "stream"  ->  pieces of text

Only the standard library: the official client is not needed to chat. Closing the stream is how an answer is stopped;
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

PATIENCE = 600.0  # seconds without a byte; a long prompt on a slow machine takes its time


class ContextFullError(Exception):
    """The conversation is longer than the model's context."""


class Server:
    """One model of a server. `address` is http(s)://host[:port], with or without /v1."""

    def __init__(self, address: str, key: str = "", model: str = ""):
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"{address}: not the address of a server; give http://host:port")
        self.base = address.rstrip("/").removesuffix("/v1") + "/v1"
        self.headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self.model = model or self._first_model()

    def answer(self, body: dict[str, Any]) -> Iterator[str]:
        """The pieces of one answer. Raises ContextFullError, or InputError with what the server says."""
        ended = False
        asked = self._ask("/chat/completions", body | {"model": self.model, "stream": True})
        with asked as response, explained(self.base):
            for line in response:
                data = line.decode("utf-8").strip().removeprefix("data:").strip() if line.startswith(b"data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    event = json.loads(data)
                    yield piece_of(event)
                    ended |= any(choice.get("finish_reason") for choice in event["choices"])
        if not ended:
            raise broken_off(self.base, "the connection was closed")

    def _first_model(self) -> str:
        """The first that writes answers: our own servers list reward models beside them."""
        with self._ask("/models") as response, explained(self.base):
            listed = [model["id"] for model in json.load(response)["data"] if model.get("kind", "policy") == "policy"]
        if not listed:
            raise InputError(f"{self.base}: the server has no model loaded")
        return listed[0]

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = Request(self.base + path, json.dumps(body).encode() if body else None, self.headers)
        try:
            return urlopen(request, timeout=PATIENCE)
        except HTTPError as error:
            raise refusal(error, self.base) from None
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise InputError(f"{self.base}: no answer ({reason}); is the server running there?") from None


@contextlib.contextmanager
def explained(base: str) -> Iterator[None]:
    """Around the reading of a response: what can go wrong with it, in one line."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise broken_off(base, str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{base}: not an OpenAI-compatible API; check the address") from None


def broken_off(base: str, why: str) -> InputError:
    return InputError(f"{base}: the answer broke off ({why}); is the server still running?")


def piece_of(event: dict[str, Any]) -> str:
    """The text that an event of the stream adds. Raises InputError where the server reports an error midway."""
    if "error" in event:
        raise InputError(f"the server stopped: {event['error'].get('message')}")
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"][:1])


def refusal(error: HTTPError, base: str) -> Exception:
    """What a refused request means to the person."""
    told: dict[str, Any] = {}
    with contextlib.suppress(ValueError, AttributeError):
        told = json.loads(error.read()).get("error") or {}
    if told.get("code") == "context_length_exceeded":
        return ContextFullError()
    hint = "; give the key with --key-file" if error.code == 401 else ""
    return InputError(f"{base}: {error.code} {told.get('message') or error.reason}{hint}")
