"""llm, the command line tool: a model in extra-openai-models.yaml, prompts, a schema, tools, a second turn."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import KEY, MODEL, QUESTION, TOKENS, URL, run, scenario

HOME = Path(tempfile.mkdtemp())
MODELS = f"""
- model_id: chat
  model_name: {MODEL}
  api_base: {URL}
  api_key_name: served
  can_stream: true
  supports_schema: true
  supports_tools: true
- model_id: plain
  model_name: {MODEL}
  api_base: {URL}
  api_key_name: served
  completion: true
"""
FUNCTION = "def find_cat(place: str) -> str:\n    'Look for the cat.'\n    return 'not there'\n"


def llm(*words: str) -> str:
    command = [sys.executable, "-m", "llm", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LLM_USER_PATH": str(HOME)})
    assert done.returncode == 0, done.stderr[-400:]
    return done.stdout


def prompt(*words: str, tokens: int = TOKENS) -> str:
    return llm("prompt", "-m", "chat", "-o", "max_tokens", str(tokens), QUESTION, *words)


@scenario
def models() -> None:
    assert "chat" in llm("models")


@scenario
def streamed() -> None:
    assert prompt("-s", "be brief").strip()


@scenario
def whole() -> None:
    assert prompt("--no-stream").strip()


@scenario
def a_completion() -> None:
    assert llm("prompt", "-m", "plain", "-o", "max_tokens", "8", "The cat") is not None


@scenario
def a_second_turn() -> None:
    prompt()
    assert llm("prompt", "-c", "-o", "max_tokens", str(TOKENS), "And now?").strip()


@scenario
def a_schema() -> None:
    assert isinstance(json.loads(prompt("--schema", "asleep bool, lives bool", tokens=200))["asleep"], bool)


@scenario
def a_list_by_schema() -> None:
    items = json.loads(prompt("--schema-multi", "asleep bool", "--no-stream", tokens=400))["items"]
    assert all(isinstance(item["asleep"], bool) for item in items)


@scenario
def tools_of_its_choice() -> None:
    prompt("--functions", FUNCTION, "--chain-limit", "2")


if __name__ == "__main__":
    (HOME / "extra-openai-models.yaml").write_text(MODELS)
    llm("keys", "set", "served", "--value", KEY)
    run("llm")
