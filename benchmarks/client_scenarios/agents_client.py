"""openai-agents with its default model class, which uses the Responses API."""

from typing import Literal

from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from harness import KEY, MODEL, QUESTION, URL, run, scenario
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
FREE = ModelSettings()  # without a limit, because the client raises when an answer reaches it


class Cat(BaseModel):
    colour: Literal["red", "black", "white"]
    asleep: bool


@function_tool
def find_cat(place: Literal["mat", "tree"]) -> str:
    """Look for the cat."""
    return f"not on the {place}"


def connect() -> None:
    """A client for each event loop."""
    set_default_openai_client(AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0), use_for_tracing=False)


@scenario
async def text() -> None:
    connect()
    agent = Agent(name="a", instructions="Be brief.", model=MODEL, model_settings=FREE)
    found = await Runner.run(agent, QUESTION)
    assert isinstance(found.final_output, str) and found.raw_responses[0].usage.output_tokens > 0


@scenario
async def streamed() -> None:
    connect()
    found = Runner.run_streamed(Agent(name="a", model=MODEL, model_settings=FREE), QUESTION)
    kinds = [event.type async for event in found.stream_events()]
    assert "raw_response_event" in kinds and isinstance(found.final_output, str)


@scenario
async def output_type() -> None:
    connect()
    agent = Agent(name="a", model=MODEL, output_type=Cat, model_settings=ModelSettings(max_tokens=200))
    assert isinstance((await Runner.run(agent, QUESTION)).final_output, Cat)


@scenario
async def a_required_tool() -> None:
    connect()
    settings = ModelSettings(tool_choice="required", max_tokens=200)
    agent = Agent(
        name="a", model=MODEL, tools=[find_cat], model_settings=settings, tool_use_behavior="stop_on_first_tool"
    )
    assert (await Runner.run(agent, QUESTION)).final_output.startswith("not on the")


@scenario
async def a_required_tool_and_then_an_answer() -> None:
    """After the first call the client resets tool_choice, and the model answers or calls again."""
    connect()
    settings = ModelSettings(tool_choice="required", max_tokens=200)
    agent = Agent(name="a", model=MODEL, tools=[find_cat], output_type=Cat, model_settings=settings)
    assert isinstance((await Runner.run(agent, QUESTION, max_turns=8)).final_output, Cat)


@scenario
async def tools_of_its_choice() -> None:
    connect()
    agent = Agent(name="a", model=MODEL, tools=[find_cat], model_settings=FREE)
    assert isinstance((await Runner.run(agent, QUESTION)).final_output, str)


@scenario
async def a_second_turn() -> None:
    connect()
    agent = Agent(name="a", model=MODEL, model_settings=FREE)
    first = await Runner.run(agent, QUESTION)
    again = await Runner.run(agent, [*first.to_input_list(), {"role": "user", "content": "And now?"}])
    assert isinstance(again.final_output, str)


if __name__ == "__main__":
    run("openai-agents")
