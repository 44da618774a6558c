"""instructor on OpenAI's client, in the modes TOOLS, JSON and JSON_SCHEMA."""

from collections.abc import Callable
from typing import Any, Literal

import instructor
from harness import KEY, MODEL, QUESTION, SCENARIOS, URL, run, scenario
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MESSAGES: Any = [{"role": "user", "content": QUESTION}]
SETTINGS: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 300, "max_retries": 0}


class Collar(BaseModel):
    colour: Literal["red", "blue"]
    bell: bool


class Cat(BaseModel):
    colour: Literal["red", "black", "white"]
    collar: Collar
    friends: Literal["none", "one", "many"]


class Anything(BaseModel):
    """Whatever a JSON object holds: the mode JSON promises no more."""


def client(mode: Any, kind: Any = OpenAI) -> Any:
    return instructor.from_openai(kind(base_url=URL, api_key=KEY, max_retries=0), mode=mode)


def in_mode(mode: Any, wanted: type[BaseModel]) -> None:
    """Scenarios of one mode: whole, asynchronous, partly streamed."""

    def add(name: str, function: Callable[[], Any]) -> None:
        SCENARIOS[f"{mode.name}: {name}"] = function

    def whole() -> None:
        assert isinstance(client(mode).chat.completions.create(response_model=wanted, **SETTINGS), wanted)

    async def asynchronous() -> None:
        found = await client(mode, AsyncOpenAI).chat.completions.create(response_model=wanted, **SETTINGS)
        assert isinstance(found, wanted)

    def partial() -> None:
        settings = {name: value for name, value in SETTINGS.items() if name != "max_retries"}
        parts = list(client(mode).chat.completions.create_partial(response_model=wanted, **settings))
        wanted.model_validate(parts[-1].model_dump())

    def with_completion() -> None:
        found, raw = client(mode).chat.completions.create_with_completion(response_model=wanted, **SETTINGS)
        assert isinstance(found, wanted) and raw.usage.total_tokens > 0

    for function in (whole, asynchronous, partial, with_completion):
        add(function.__name__, function)


in_mode(instructor.Mode.TOOLS, Cat)
in_mode(instructor.Mode.JSON, Anything)
in_mode(instructor.Mode.JSON_SCHEMA, Cat)


@scenario
def plain_text() -> None:
    answer = client(instructor.Mode.TOOLS).chat.completions.create(response_model=None, **SETTINGS)
    assert isinstance(answer.choices[0].message.content, str)


if __name__ == "__main__":
    run("instructor")
