"""Run the clients that people use against `tutelage serve`, each in an environment of its own.

    python benchmarks/clients.py [--clients NAME ...] [--run RUN] [--out runs/benchmarks]

Starts a server on loopback with a tiny model of random weights, or with RUN, and beside it the tests' tiny trained
models. Then runs the scripts of `client_scenarios/`, which say what each client tries. Prints one Markdown row per
client with its version and how many scenarios passed, then the failures, and writes both to OUT (record.py).

lm-eval reports the log-likelihood of 100 items. They are compared with our own scoring of the same texts, which is one
forward pass of the model, without engine or server.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers import environment
from record import Record, add_out

HERE, TESTS = Path(__file__).parent, Path(__file__).parent.parent / "tests"
sys.path += [str(TESTS / "server"), str(TESTS / "stages")]
from live import Live, random_model  # noqa: E402
from world import World  # noqa: E402

from tutelage.model.gpt import GPT  # noqa: E402
from tutelage.runs.device import choose_device  # noqa: E402
from tutelage.runs.folder import load_policy  # noqa: E402
from tutelage.sampling.likelihood import summed_logprobs  # noqa: E402
from tutelage.text.tokenizer import Tokenizer  # noqa: E402

SECONDS = 900  # of one client
TOLERANCE = 1e-3  # between a log-likelihood over HTTP and our own


@dataclass(frozen=True)
class Found:
    """What one client's script printed."""

    version: str
    scenarios: dict[str, str]
    figures: dict[str, Any]

    @property
    def failures(self) -> dict[str, str]:
        return {name: error for name, error in self.scenarios.items() if error}


def script(name: str, *packages: str) -> Callable[..., Found]:
    """A client whose scenarios are in client_scenarios/NAME.py, in an environment with these packages."""

    def run(server: Live, *words: str) -> Found:
        python = environment(name, list(packages))
        return printed([python, str(HERE / "client_scenarios" / f"{name}.py"), f"{server.url}/v1", server.key, *words])

    return run


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[Live]:
    server = Live(folder, *words)
    try:
        yield server
    finally:
        server.stop()


def last_line(command: list[str]) -> dict[str, Any]:
    """Run a script whose last line is a JSON object. A script that fails is a scenario that failed."""
    here = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=here)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        trouble = f"not done after {SECONDS} seconds"
    except (IndexError, ValueError):
        trouble = f"exit {done.returncode}: {' '.join(done.stderr.split())[-600:]}"
    return {"version": "?", "scenarios": {Path(command[1]).name: trouble}, "figures": {}}


def printed(command: list[str]) -> Found:
    return Found(**last_line(command))


def openai_client(name: str, wanted: str) -> Callable[[Live, str], Found]:
    """OpenAI's Python client: the scenarios of the tests and those of client_scenarios/."""

    def run(server: Live, model: str) -> Found:
        python = environment(name, [wanted])
        given = [f"{server.url}/v1", server.key]
        more = printed([python, str(HERE / "client_scenarios" / "openai_client.py"), *given, model])
        plain = last_line([python, str(TESTS / "server" / "scenarios.py"), *given])
        plain.pop("version")
        return Found(more.version, plain.get("scenarios", plain) | more.scenarios, {})

    return run


def node_client(server: Live, model: str) -> Found:
    """OpenAI's client for Node, likewise."""
    folder = Path(".peers/node").resolve()
    install = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", "openai@6"]
    scripts = [TESTS / "server" / "node_client.mjs", HERE / "client_scenarios" / "openai_node.mjs"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(install, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return Found("?", {"npm install openai": str(error)}, {})
    given, scenarios, version = [f"{server.url}/v1", server.key, model], {}, "?"
    for each in scripts:
        (folder / each.name).write_bytes(each.read_bytes())  # modules are found beside the script
        told = last_line(["node", str(folder / each.name), *given])
        version = told.pop("version")
        scenarios |= told.get("scenarios", told)
    return Found(version, scenarios, {})


def lm_eval_client(folder: Path, run: Path) -> Found:
    """lm-eval, and the largest difference between its log-likelihoods and our own.

    The server has one model, because lm-eval asks for the tokenizer without a model's name. It is not the random one,
    which hardly ever ends a turn: lm-eval's sums depend on that.
    """
    policy, tokenizer = load_policy(run, choose_device("cpu"), frozen=True)
    context = str(policy.config.context)
    folder.mkdir()
    with serving(folder, f"model={run}", "--context", "0") as server:
        found = script("lm_eval_client", "lm_eval[api]==0.4.13", "transformers")(server, "model", context)
    scored = found.figures.get("scored", [])
    if not scored:
        return found
    own, ended = own_logprobs(policy, tokenizer, [(row["context"], row["continuation"]) for row in scored])
    worst = max(abs(row["logprob"] - logprob) for row, logprob in zip(scored, own, strict=True))
    error = "" if worst <= TOLERANCE else f"largest difference {worst:.2g}"
    name = f"{len(scored)} log-likelihoods equal ours to {TOLERANCE:g}"
    figures = {"largest_difference": worst, "texts_after_which_the_turn_ends": ended}
    return Found(found.version, found.scenarios | {name: error}, figures)


def own_logprobs(policy: GPT, tokenizer: Tokenizer, texts: list[tuple[str, str]]) -> tuple[list[float], int]:
    """log pi(continuation | context), as `tutelage dpo` computes it, and after how many texts the turn would end."""
    starts = [len(tokenizer.encode(context)) for context, _ in texts]
    groups = [[tokenizer.encode(context + continuation)] for context, continuation in texts]
    with torch.inference_mode():
        sums = summed_logprobs(policy, groups, starts, tokenizer.pad_id)
        nexts = [int(policy(torch.tensor(group))[0, -1].argmax()) for group in groups]
    return [float(one) for one in sums], sum(token in tokenizer.end_ids for token in nexts)


CLIENTS: dict[str, Callable[[Live, str], Found]] = {
    "openai 3": openai_client("openai-3", "openai>=3,<4"),
    "openai 1": openai_client("openai-1", "openai>=1.109,<2"),
    "openai for Node": node_client,
    "llm": script("llm_client", "llm==0.36"),
    "litellm": script("litellm_client", "litellm==1.110.2"),
    "langchain-openai": script("langchain_client", "langchain-openai==1.7.4"),
    "instructor": script("instructor_client", "instructor==1.17.0"),
    "openai-agents": script("agents_client", "openai-agents==0.24.0"),
    "pydantic-ai": script("pydantic_ai_client", "pydantic-ai-slim[openai]==2.68.0"),
    "inspect-ai": script("inspect_client", "inspect-ai==0.3.285", "openai"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*CLIENTS, "lm-eval"]
    parser.add_argument("--clients", nargs="+", choices=names, default=names, help="the clients to run")
    parser.add_argument("--run", type=Path, help="a run to serve; the default is a tiny model of random weights")
    add_out(parser)
    given = parser.parse_args()
    record = Record(given.out / "clients", given)
    record.say("| client | version | scenarios | passed |\n|---|---|---|---|")
    figures: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = given.run or random_model(folder / "random")
        world = World(folder / "world").make()
        models = [f"model={run}", f"base={world.base}", f"chat={world.sft}", f"judge={world.reward}"]
        words = ["--context", "0", "--slots", "4", "--recording", "on", "--no-access-log"]
        with serving(folder, *models, *words) as server:
            runs = CLIENTS | {"lm-eval": lambda *_: lm_eval_client(folder / "lm-eval", given.run or world.sft)}
            for name in given.clients:
                found = figures[name] = runs[name](server, "model")
                passed = len(found.scenarios) - len(found.failures)
                record.say(f"| {name} | {found.version} | {len(found.scenarios)} | {passed} |")
    for name, found in figures.items():
        for scenario, error in found.failures.items():
            record.say(f"\n{name}, {scenario}: {error}")
    record.leave({name: vars(found) for name, found in figures.items()})


if __name__ == "__main__":
    main()
