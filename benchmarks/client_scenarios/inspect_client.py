"""inspect-ai with its `openai/` provider: answers, tools, structured output, and an evaluation of four samples."""

import tempfile
from typing import Any

from harness import KEY, MODEL, QUESTION, SCENARIOS, TOKENS, URL, run, scenario
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
from inspect_ai.tool import Tool, tool
from inspect_ai.util import json_schema
from pydantic import BaseModel


class Cat(BaseModel):
    asleep: bool
    lives: bool


@tool
def find_cat() -> Tool:
    async def execute(asleep: bool) -> str:
        """Look for the cat.

        Args:
            asleep: Whether it must be asleep.
        """
        return "on the mat"

    return execute


def model(**settings: Any) -> Any:
    return get_model(f"openai/{MODEL}", base_url=URL, api_key=KEY, memoize=False, **settings)


def with_api(name: str, **settings: Any) -> None:
    """Scenarios with one of OpenAI's two APIs."""

    async def answer() -> None:
        found = await model(**settings).generate(QUESTION, config=GenerateConfig(max_tokens=TOKENS, seed=1))
        assert isinstance(found.completion, str) and found.usage and found.usage.output_tokens > 0

    async def a_required_tool() -> None:
        config = GenerateConfig(max_tokens=200)
        found = await model(**settings).generate(QUESTION, tools=[find_cat()], tool_choice="any", config=config)
        (call, *_) = found.message.tool_calls
        assert call.function == "find_cat" and isinstance(call.arguments["asleep"], bool)

    async def structured() -> None:
        wanted = ResponseSchema(name="cat", json_schema=json_schema(Cat))
        config = GenerateConfig(max_tokens=200, response_schema=wanted)
        Cat.model_validate_json((await model(**settings).generate(QUESTION, config=config)).completion)

    for function in (answer, a_required_tool, structured):
        SCENARIOS[f"{name}: {function.__name__}"] = function


with_api("default")
with_api("chat completions", responses_api=False)
with_api("Responses", responses_api=True)


@scenario
def an_evaluation() -> None:
    samples = [Sample(input=f"{QUESTION} {number}", target="cat") for number in range(4)]
    task = Task(dataset=samples, solver=generate(), scorer=includes(), config=GenerateConfig(max_tokens=TOKENS))
    with tempfile.TemporaryDirectory() as folder:
        (log,) = eval(task, model=model(), log_dir=folder, display="none")
    assert log.status == "success" and log.results and log.results.completed_samples == 4, log.error


if __name__ == "__main__":
    run("inspect-ai")
