"""Small tasks for zero-, one- and few-shot prompting: what a model can do without any training on them.

    run -> for each task and number of shots: prompts -> likeliest choice, or text that is written -> accuracy

Multiple choice as in Brown et al. 2020, section 2.4: the choice whose tokens are likeliest on average, or likeliest
compared with how likely they are after "A:" alone. Sums are written out: plainly, with reasons shown (Wei et al. 2022),
asked for (Kojima et al. 2022), or as the majority of several (Wang et al. 2022). The items are ours: `tasks.json`, and
sums made from a seed. A model of this size is not expected to gain from chains of thought: the mechanics are shown.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from tutelage.atomic import atomic_write
from tutelage.errors import InputError
from tutelage.evals.prompting import (
    Example,
    Render,
    as_instruction,
    as_instruction_alone,
    few_shot_prompt,
    final_answer,
    majority,
    question_answer,
    step_by_step,
    with_reasons,
)
from tutelage.model.gpt import GPT
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy
from tutelage.runs.run import Run, RunConfig, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import pad_responses, response_logprobs
from tutelage.sampling.sampler import Response, for_inference, generate
from tutelage.sampling.stops import cut, stop_at
from tutelage.text.tokenizer import Tokenizer

CHOICES = 4
ROWS = 64  # texts written at once
BLANK_LINE = "\n\n"  # after it a model that goes on with the pattern has begun the next question


@dataclass(frozen=True, kw_only=True)
class TasksConfig(RunConfig):
    """How the tasks are asked."""

    shots: tuple[int, ...] = (0, 1, 5)
    """Solved examples before the item: 0 is zero-shot."""
    count: int = 48
    """Items of each task."""
    scoring: Literal["mean", "unconditional"] = "mean"
    """Multiple choice: mean log-probability per token, or that of the choice less that of the choice after "A:"."""
    sums: bool = True
    """Also write out sums, with and without chains of thought."""
    samples: int = 5
    """Chains of thought per item for self-consistency."""
    max_tokens: int = 64
    """Longest text that is written, in tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.shots, default=0) < 0:
            raise InputError(f"--shots {min(self.shots)}: a number of examples is 0 or more")


def tasks(run: tyro.conf.Positional[Path], out: Path, config: TasksConfig = TasksConfig()) -> None:
    """Zero-, one- and few-shot accuracy of a model on small tasks.

    Example: tutelage tasks runs/smollm2 --out runs/tasks
    """
    folder = find_base(run)
    with Run(out, stage="tasks", config=config, inputs={"run": folder}) as work:
        if work.finished:
            return
        trained, tokenizer = load_policy(folder, work.device, frozen=True)
        model = for_inference(trained)
        plan = [(name, f"{shots}-shot") for name in read_tasks() for shots in config.shots]
        plan += [("sums", how) for how in WAYS] if config.sums else []
        table: dict[str, dict[str, float]] = {}
        for i, (name, how) in enumerate(plan):
            work.progress.update(i / len(plan), task=name, how=how)
            table.setdefault(name, {})[how] = measure(model, tokenizer, name, how, config)
        with atomic_write(out / "tasks.json") as file:
            json.dump(table, file, indent=2)
        for name, row in table.items():
            work.progress.say(f"{name:10} " + "  ".join(f"{how} {value:.1%}" for how, value in row.items()))
        work.finish({f"{name}/{how}": value for name, row in table.items() for how, value in row.items()})


def measure(model: GPT, tokenizer: Tokenizer, name: str, how: str, config: TasksConfig) -> float:
    """Accuracy on one task, asked in one way."""
    if name == "sums":
        return write_out(model, tokenizer, make_sums(config.count, config.seed), how, config)
    opening, pool = load_task(name)
    return choose(model, tokenizer, opening, pool, int(how.removesuffix("-shot")), config)


# ---- the tasks


def read_tasks() -> dict[str, Any]:
    return json.loads(files("tutelage.evals").joinpath("tasks.json").read_text(encoding="utf-8"))


def load_task(name: str) -> tuple[str, list[Example]]:
    """Its opening and its items, each with three wrong choices that are right elsewhere."""
    task = read_tasks()[name]
    answers = [answer for _, answer in task["items"]]
    pool = []
    for asked, answer in task["items"]:
        chance = random.Random(f"{name}/{asked}")
        wrong = chance.sample([other for other in answers if other != answer], CHOICES - 1)
        choices = chance.sample([answer, *wrong], CHOICES)
        pool.append(Example(task["question"].format(asked), answer, tuple(choices)))
    return task["opening"], pool


def make_sums(count: int, seed: int) -> list[Example]:
    """Stories with two steps of adding and taking away, all different, with their reasons."""
    chance = random.Random(f"sums/{seed}")
    made: dict[str, Example] = {}
    while len(made) < count:
        name, thing = chance.choice(["Ann", "Ben", "Mia", "Tom", "Li"]), chance.choice(["apples", "books", "coins"])
        first, more, less = chance.randint(3, 20), chance.randint(2, 12), chance.randint(1, 5)
        question = f"{name} has {first} {thing}, buys {more} more and gives {less} away. How many {thing} are left?"
        reasons = f"{first} + {more} = {first + more}. {first + more} - {less} = {first + more - less}."
        made[question] = Example(question, str(first + more - less), reasons=reasons)
    return list(made.values())


# ---- multiple choice


def choose(
    model: GPT, tokenizer: Tokenizer, opening: str, pool: Sequence[Example], shots: int, config: TasksConfig
) -> float:
    """Share of items whose right choice is the likeliest one."""
    longest = max(len(tokenizer.encode(f" {choice}")) for example in pool for choice in example.choices)
    fits = fitting(model, tokenizer, longest)
    items, right = pool[: config.count], 0
    for item in items:
        prompt = asked(item, pool, shots, fits, config.seed, question_answer, opening)
        scores = choice_scores(model, tokenizer, prompt, item.choices)
        if config.scoring == "unconditional":
            scores = scores - choice_scores(model, tokenizer, "A:", item.choices)
        right += item.choices[int(scores.argmax())] == item.answer
    return right / len(items)


@torch.inference_mode()
def choice_scores(model: GPT, tokenizer: Tokenizer, prompt: str, choices: Sequence[str]) -> torch.Tensor:
    """(n,): mean log-probability per token of each choice after the prompt and a space."""
    start = tokenizer.encode(prompt)
    answers = [Response(tokenizer.encode(f" {choice}"), [], True) for choice in choices]
    batch = pad_responses([start] * len(answers), answers, tokenizer.pad_id, model.embedding.weight.device)
    return response_logprobs(model, batch).sum(1) / batch.mask.sum(1)


# ---- writing the answer out

WAYS: dict[str, tuple[Render, int, int]] = {  # how an item is shown, solved examples before it, texts that are sampled
    "plain, 0-shot": (question_answer, 0, 1),
    "plain, 5-shot": (question_answer, 5, 1),
    "as an instruction, 0-shot": (as_instruction, 0, 1),
    "as an instruction, 5-shot": (as_instruction, 5, 1),
    "as an instruction without input, 0-shot": (as_instruction_alone, 0, 1),
    "as an instruction without input, 5-shot": (as_instruction_alone, 5, 1),
    "step by step, 0-shot": (step_by_step, 0, 1),
    "with reasons, 5-shot": (with_reasons, 5, 1),
    "with reasons, majority": (with_reasons, 5, 0),
}


def write_out(model: GPT, tokenizer: Tokenizer, pool: Sequence[Example], how: str, config: TasksConfig) -> float:
    """Share of items whose written answer is the right one: greedy, or the majority of sampled texts."""
    render, shots, samples = WAYS[how]
    samples = samples or config.samples
    sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=0.0 if samples == 1 else 0.7)
    items = pool[: config.count]
    fits = fitting(model, tokenizer, config.max_tokens)
    shots = min(shots, len(pool) - 1)
    prompts = [tokenizer.encode(asked(item, pool, shots, fits, config.seed, render)) for item in items]
    # InstructGPT's automatic evaluations cut at the first newline; reasons may take several lines, not a blank one.
    stop = stop_at([BLANK_LINE], tokenizer.decode)
    written, size = [], max(1, ROWS // samples)
    for at in range(0, len(prompts), size):
        some = prompts[at : at + size]
        seeds = [seed_for(config.seed, f"tasks/{how}/{at + i}/{k}") for i in range(len(some)) for k in range(samples)]
        written += generate(model, some, seeds, tokenizer.end_of_turn_id, sampling, samples, stop)
    found = [majority([final_answer(cut(tokenizer.decode(a.ids), [BLANK_LINE])) for a in some]) for some in written]
    return sum(answer == item.answer for answer, item in zip(found, items, strict=True)) / len(items)


def asked(
    item: Example, pool: Sequence[Example], shots: int, fits: Callable[[str], bool], seed: int, render: Render,
    opening: str = "",
) -> str:  # fmt: skip
    """The prompt. Raises InputError where it cannot be made."""
    try:
        return few_shot_prompt(item, pool, shots, fits, seed, render, opening)
    except ValueError as error:
        raise InputError(f"tasks: {error}; lower --shots or --max-tokens, or take a model with more context") from None


def fitting(model: GPT, tokenizer: Tokenizer, room: int) -> Callable[[str], bool]:
    """Whether a prompt leaves `room` tokens in the model's context."""
    return lambda prompt: len(tokenizer.encode(prompt)) + room <= model.config.context
