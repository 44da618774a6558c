"""langchain-openai: chat, tools, all three methods of structured output, the Responses API."""

from typing import Any, Literal

from harness import KEY, MODEL, QUESTION, TOKENS, URL, run, scenario
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel


class Cat(BaseModel):
    """A cat."""

    colour: Literal["red", "black", "white"]
    asleep: bool


class Anything(BaseModel):
    """Whatever a JSON object holds: JSON mode promises no more."""


@tool
def find_cat(place: Literal["mat", "tree"]) -> str:
    """Look for the cat."""
    return f"not on the {place}"


def model(**settings: Any) -> ChatOpenAI:
    return ChatOpenAI(
        **({"model": MODEL, "base_url": URL, "api_key": KEY, "max_retries": 0, "max_tokens": 200} | settings)
    )


@scenario
def invoke() -> None:
    answer = model(max_tokens=TOKENS).invoke([SystemMessage("be brief"), HumanMessage(QUESTION)])
    assert isinstance(answer, AIMessage) and answer.usage_metadata and answer.usage_metadata["output_tokens"] > 0


@scenario
def stream() -> None:
    chunks = list(model(max_tokens=TOKENS).stream(QUESTION))
    assert len(chunks) > 1 and all(isinstance(chunk.content, str) for chunk in chunks)


@scenario
async def batch() -> None:
    assert len(await model(max_tokens=TOKENS).abatch([QUESTION] * 4)) == 4


@scenario
def completion() -> None:
    assert isinstance(OpenAI(model=MODEL, base_url=URL, api_key=KEY, max_tokens=8).invoke("The cat"), str)


@scenario
def structured_by_function_calling() -> None:
    assert isinstance(model().with_structured_output(Cat, method="function_calling").invoke(QUESTION), Cat)


@scenario
def structured_by_json_mode() -> None:
    found = model().with_structured_output(Anything, method="json_mode").invoke(f"{QUESTION} Answer in JSON.")
    assert isinstance(found, Anything)


@scenario
def structured_by_json_schema() -> None:
    assert isinstance(model().with_structured_output(Cat, method="json_schema").invoke(QUESTION), Cat)


@scenario
def structured_by_a_strict_json_schema_streamed() -> None:
    parts = list(model().with_structured_output(Cat, method="json_schema", strict=True).stream(QUESTION))
    assert isinstance(parts[-1], Cat)


@scenario
def a_required_tool_and_its_result() -> None:
    turns: list[Any] = [HumanMessage(QUESTION)]
    answer = model().bind_tools([find_cat], tool_choice="any").invoke(turns)
    assert answer.tool_calls and not answer.invalid_tool_calls
    results = [find_cat.invoke(call) for call in answer.tool_calls]
    assert all(isinstance(result, ToolMessage) for result in results)
    assert model(max_tokens=TOKENS).bind_tools([find_cat]).invoke([*turns, answer, *results])


@scenario
def a_named_tool_streamed() -> None:
    chunks = list(model().bind_tools([find_cat], tool_choice="find_cat").stream(QUESTION))
    whole = sum(chunks[1:], chunks[0])
    assert whole.tool_calls[0]["args"]["place"] in ("mat", "tree")


@scenario
def tools_of_its_choice() -> None:
    assert isinstance(model(max_tokens=TOKENS).bind_tools([find_cat]).invoke(QUESTION), AIMessage)


@scenario
def the_responses_api() -> None:
    answer = model(use_responses_api=True, max_tokens=TOKENS).invoke(QUESTION)
    assert isinstance(answer.text if isinstance(answer.text, str) else answer.text(), str)


@scenario
def structured_by_the_responses_api() -> None:
    found = model(use_responses_api=True).with_structured_output(Cat, method="json_schema").invoke(QUESTION)
    assert isinstance(found, Cat)


if __name__ == "__main__":
    run("langchain-openai")
