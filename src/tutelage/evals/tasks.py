"""Zero-, one- and few-shot accuracy on small tasks that the model was not trained on.

    run -> for each task and number of shots: prompts -> most likely choice, or generated text -> accuracy

Multiple choice follows Brown et al. 2020, section 2.4: the choice with the highest mean log-probability per token, or
the highest after subtracting its log-probability after "A:" alone. Sums are answered in free text: directly, with
worked examples (Wei et al. 2022), after "Let's think step by step" (Kojima et al. 2022), or by majority over several
samples (Wang et al. 2022). The items are our own: `tasks.json`, and sums generated from a seed. Models of this size are
not expected to gain from chains of thought; the task shows the mechanics.
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
from tutelage.options import Advanced, Count, Natural
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, counted
from tutelage.runs.folder import load_policy
from tutelage.runs.run import Run, RunConfig, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import pad_responses, response_logprobs
from tutelage.sampling.sampler import Response, for_inference, generate
from tutelage.sampling.stops import cut, stop_at
from tutelage.text.tokenizer import Tokenizer

CHOICES = 4
ROWS = 64  # texts generated at once
BLANK_LINE = "\n\n"  # a model that continues the pattern begins the next question after it


@dataclass(frozen=True, kw_only=True)
class TasksConfig(RunConfig):
    """Number of examples and items, and how choices and texts are scored."""

    shots: tuple[Natural, ...] = (0, 1, 5)
    """Numbers of solved examples before the item; 0 is zero-shot."""
    count: Count = 48
    """Number of items per task."""
    scoring: Advanced[Literal["mean", "unconditional"]] = "mean"
    """Multiple choice: mean log-probability per token, or that minus the same choice's after "A:" alone."""
    sums: bool = True
    """Also ask for sums in free text, with and without chains of thought."""
    samples: Count = 5
    """Sampled chains of thought per item, for self-consistency."""
    max_tokens: Count = 64
    """Maximum length of a generated text, in tokens."""


def tasks(run: tyro.conf.Positional[Path], out: Path, config: TasksConfig = TasksConfig()) -> None:
    """Zero-, one- and few-shot accuracy of a model on small tasks.

    run: Run to measure.
    out: Run directory to write.

    Example: tutelage tasks runs/smollm2 --out runs/tasks
    """
    folder = find_base(run)
    with Run(out, stage="tasks", config=config, inputs={"run": folder}) as work:
        if work.finished:
            return
        policy, tokenizer = load_policy(folder, work.device, frozen=True)
        model = for_inference(policy)
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
        results = {f"{name}/{how}": value for name, row in table.items() for how, value in row.items()}
        work.finish(results, Ending(f"measured on {counted(len(table), 'task')}; tasks.json holds the accuracies"))


def measure(model: GPT, tokenizer: Tokenizer, name: str, how: str, config: TasksConfig) -> float:
    """Accuracy on one task with one kind of prompt."""
    if name == "sums":
        return generate_answers(model, tokenizer, make_sums(config.count, config.seed), how, config)
    opening, pool = load_task(name)
    return choose(model, tokenizer, opening, pool, int(how.removesuffix("-shot")), config)


# ---- the tasks


def read_tasks() -> dict[str, Any]:
    return json.loads(files("tutelage.evals").joinpath("tasks.json").read_text(encoding="utf-8"))


def load_task(name: str) -> tuple[str, list[Example]]:
    """A task's opening and its items. The three wrong choices of an item are the answers to other items."""
    task = read_tasks()[name]
    answers = [answer for _, answer in task["items"]]
    pool = []
    for subject, answer in task["items"]:
        rng = random.Random(f"{name}/{subject}")
        wrong = rng.sample([other for other in answers if other != answer], CHOICES - 1)
        choices = rng.sample([answer, *wrong], CHOICES)
        pool.append(Example(task["question"].format(subject), answer, tuple(choices)))
    return task["opening"], pool


def make_sums(count: int, seed: int) -> list[Example]:
    """Different word problems with one addition and one subtraction, and their reasoning."""
    rng = random.Random(f"sums/{seed}")
    sums: dict[str, Example] = {}
    while len(sums) < count:
        name, thing = rng.choice(["Ann", "Ben", "Mia", "Tom", "Li"]), rng.choice(["apples", "books", "coins"])
        first, more, less = rng.randint(3, 20), rng.randint(2, 12), rng.randint(1, 5)
        question = f"{name} has {first} {thing}, buys {more} more and gives {less} away. How many {thing} are left?"
        reasons = f"{first} + {more} = {first + more}. {first + more} - {less} = {first + more - less}."
        sums[question] = Example(question, str(first + more - less), reasons=reasons)
    return list(sums.values())


# ---- multiple choice


def choose(
    model: GPT, tokenizer: Tokenizer, opening: str, pool: Sequence[Example], shots: int, config: TasksConfig
) -> float:
    """Share of items whose most likely choice is the right one."""
    longest = max(len(tokenizer.encode(f" {choice}")) for example in pool for choice in example.choices)
    fits = leaves_room(model, tokenizer, longest)
    items, right = pool[: config.count], 0
    for item in items:
        prompt = make_prompt(item, pool, shots, fits, config.seed, question_answer, opening)
        scores = choice_scores(model, tokenizer, prompt, item.choices)
        if config.scoring == "unconditional":
            scores = scores - choice_scores(model, tokenizer, "A:", item.choices)
        right += item.choices[int(scores.argmax())] == item.answer
    return right / len(items)


@torch.inference_mode()
def choice_scores(model: GPT, tokenizer: Tokenizer, prompt: str, choices: Sequence[str]) -> torch.Tensor:
    """(choices,): mean log-probability per token of each choice after the prompt and a space."""
    start = tokenizer.encode(prompt)
    responses = [Response(tokenizer.encode(f" {choice}"), [], True) for choice in choices]
    batch = pad_responses([start] * len(responses), responses, tokenizer.pad_id, model.embedding.weight.device)
    return response_logprobs(model, batch).sum(1) / batch.mask.sum(1)


# ---- free text

# How an item is rendered, the number of solved examples before it, and the texts sampled per item (0: --samples).
WAYS: dict[str, tuple[Render, int, int]] = {
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


def generate_answers(model: GPT, tokenizer: Tokenizer, pool: Sequence[Example], how: str, config: TasksConfig) -> float:
    """Share of items answered right in free text: decoded greedily, or the majority answer of sampled texts."""
    render, shots, samples = WAYS[how]
    samples = samples or config.samples
    sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=0.0 if samples == 1 else 0.7)
    items = pool[: config.count]
    fits = leaves_room(model, tokenizer, config.max_tokens)
    shots = min(shots, len(pool) - 1)
    prompts = [tokenizer.encode(make_prompt(item, pool, shots, fits, config.seed, render)) for item in items]
    # InstructGPT's automatic evaluations cut at the first newline. Reasoning may span lines, so we cut at a blank line.
    stop = stop_at([BLANK_LINE], tokenizer.decode)
    responses, size = [], max(1, ROWS // samples)
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        places = range(start, start + len(batch))
        seeds = [seed_for(config.seed, f"tasks/{how}/{i}/{k}") for i in places for k in range(samples)]
        responses += generate(model, batch, seeds, tokenizer.end_ids, sampling, samples, stop)
    texts = [[cut(tokenizer.decode(one.ids), [BLANK_LINE]) for one in group] for group in responses]
    answers = [majority([final_answer(text) for text in group]) for group in texts]
    return sum(answer == item.answer for answer, item in zip(answers, items, strict=True)) / len(items)


def make_prompt(
    item: Example,
    pool: Sequence[Example],
    shots: int,
    fits: Callable[[str], bool],
    seed: int,
    render: Render,
    opening: str = "",
) -> str:
    """As `few_shot_prompt`, with its ValueError as an InputError."""
    try:
        return few_shot_prompt(item, pool, shots, fits, seed, render, opening)
    except ValueError as error:
        raise InputError(
            f"tasks: {error}; lower --shots or --max-tokens, or use a model with a longer context"
        ) from None


def leaves_room(model: GPT, tokenizer: Tokenizer, room: int) -> Callable[[str], bool]:
    """A function that says whether a prompt leaves `room` tokens of the model's context free."""
    return lambda prompt: len(tokenizer.encode(prompt)) + room <= model.config.context
