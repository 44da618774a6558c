"""litellm with its `openai/` provider."""

import json
from typing import Any, Literal

import litellm
from harness import KEY, MODEL, QUESTION, TOKENS, URL, run, scenario
from pydantic import BaseModel

litellm.num_retries = 0
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_cat",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "enum": ["mat", "tree"]}},
                "required": ["place"],
                "additionalProperties": False,
            },
        },
    }
]


class Cat(BaseModel):
    colour: Literal["red", "black", "white"]
    asleep: bool


COMMON: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY}


def chat(**settings: Any) -> Any:
    return litellm.completion(**(COMMON | {"messages": MESSAGES, "max_tokens": 200} | settings))


@scenario
def completion() -> None:
    answer = chat(max_tokens=TOKENS)
    assert isinstance(answer.choices[0].message.content, str) and answer.usage.total_tokens > 0


@scenario
def stream() -> None:
    chunks = list(chat(max_tokens=TOKENS, stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert whole and isinstance(whole.choices[0].message.content, str) and whole.usage.completion_tokens > 0


@scenario
async def asynchronous() -> None:
    answer = await litellm.acompletion(**COMMON, messages=MESSAGES, max_tokens=TOKENS)
    assert isinstance(answer.choices[0].message.content, str)


@scenario
def text_completion() -> None:
    settings = COMMON | {"model": f"text-completion-openai/{MODEL}"}
    answer = litellm.text_completion(**settings, prompt="The cat", max_tokens=8)
    assert isinstance(answer.choices[0].text, str)


@scenario
def response_format_of_a_class() -> None:
    Cat.model_validate_json(chat(response_format=Cat).choices[0].message.content)


@scenario
def json_object() -> None:
    assert isinstance(json.loads(chat(response_format={"type": "json_object"}).choices[0].message.content), dict)


@scenario
def required_tool() -> None:
    (call, *_) = chat(tools=TOOLS, tool_choice="required").choices[0].message.tool_calls
    assert call.function.name == "find_cat" and json.loads(call.function.arguments)["place"] in ("mat", "tree")


@scenario
def required_tool_streamed() -> None:
    whole = litellm.stream_chunk_builder(list(chat(tools=TOOLS, tool_choice="required", stream=True)))
    (call, *_) = whole.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["place"] in ("mat", "tree")


@scenario
def tools_of_its_choice() -> None:
    assert chat(tools=TOOLS, max_tokens=TOKENS).choices


@scenario
def responses() -> None:
    answer = litellm.responses(**COMMON, input=QUESTION, max_output_tokens=TOKENS)
    assert answer.output and answer.usage.output_tokens > 0


@scenario
def an_unknown_model() -> None:
    try:
        litellm.completion(**(COMMON | {"model": "openai/none"}), messages=MESSAGES)
    except litellm.NotFoundError:
        return
    raise AssertionError("an unknown model was found")


if __name__ == "__main__":
    run("litellm")
