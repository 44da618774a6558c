"""pydantic-ai: chat and Responses models, output by tools and by JSON schema, tools, streams."""

from typing import Any, Literal

from harness import KEY, MODEL, QUESTION, SCENARIOS, TOKENS, URL, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

FREE: Any = {"max_tokens": TOKENS}
HELD: Any = {"max_tokens": 300}


class Cat(BaseModel):
    """A cat."""

    colour: Literal["red", "black", "white"]
    asleep: bool


class Dog(BaseModel):
    """A dog."""

    size: Literal["big", "small"]


def find_cat(place: Literal["mat", "tree"]) -> str:
    """Look for the cat."""
    return f"not on the {place}"


def with_model(kind: Any) -> None:
    """Scenarios with one of the model classes. A new model for each event loop."""

    def agent(output: Any = str, **more: Any) -> Any:
        model = kind(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))
        return Agent(model, output_type=output, retries=0, **more)

    async def text() -> None:
        found = await agent(instructions="Be brief.").run(QUESTION, model_settings=FREE)
        assert isinstance(found.output, str)

    async def streamed() -> None:
        async with agent().run_stream(QUESTION, model_settings=FREE) as found:
            assert isinstance(await found.get_output(), str)

    async def output_by_a_tool() -> None:
        assert isinstance((await agent(ToolOutput(Cat)).run(QUESTION, model_settings=HELD)).output, Cat)

    async def output_by_one_of_two_tools() -> None:
        found = await agent([ToolOutput(Cat), ToolOutput(Dog)]).run(QUESTION, model_settings=HELD)
        assert isinstance(found.output, Cat | Dog)

    async def output_by_json_schema() -> None:
        assert isinstance((await agent(NativeOutput(Cat)).run(QUESTION, model_settings=HELD)).output, Cat)

    async def output_streamed() -> None:
        async with agent(ToolOutput(Cat)).run_stream(QUESTION, model_settings=HELD) as found:
            assert isinstance(await found.get_output(), Cat)

    async def tools_of_its_choice() -> None:
        found = await agent(tools=[find_cat]).run(QUESTION, model_settings=FREE)
        assert isinstance(found.output, str)

    async def a_second_turn() -> None:
        first = await agent().run(QUESTION, model_settings=FREE)
        again = await agent().run("And now?", message_history=first.all_messages(), model_settings=FREE)
        assert isinstance(again.output, str)

    scenarios = (text, streamed, output_by_a_tool, output_by_one_of_two_tools, output_by_json_schema, output_streamed)
    for function in (*scenarios, tools_of_its_choice, a_second_turn):
        SCENARIOS[f"{kind.__name__}: {function.__name__}"] = function


with_model(OpenAIChatModel)
with_model(OpenAIResponsesModel)

if __name__ == "__main__":
    run("pydantic-ai-slim")
