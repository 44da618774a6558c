"""Prompts as the GPT-2 and GPT-3 papers build them: a task said in text, with no, one or a few examples before it.

    item, pool of examples, shots -> few_shot_prompt -> text that a language model goes on with

Few-shot: Brown et al. 2020, section 2 and figure 2.1: K examples in random order, a blank line between them, as many as
fit. Chain of thought: Wei et al. 2022 (examples with their reasons), Kojima et al. 2022 (one sentence that asks for
them), Wang et al. 2022 (the answer that most of several sampled reasons end with). Instruction triples as Wang et al.
2023 (Self-Instruct) collect them, in our words. No model here: strings in, strings out.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

THINK = "Let's think step by step."  # Kojima et al. 2022, the best of their sixteen sentences
CONCLUDE = "The answer is"
ANSWER = "Answer the question."


@dataclass(frozen=True)
class Example:
    """One item of a task, solved."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()  # of which the answer is one; empty where it is to be written
    reasons: str = ""  # how one gets to the answer, for chains of thought


Render = Callable[[Example, bool], str]  # example, with its answer? -> text


def question_answer(example: Example, solved: bool) -> str:
    """Q and A on a line each; unsolved it ends where the answer begins."""
    return f"Q: {example.question}\nA:" + (f" {example.answer}" if solved else "")


def with_reasons(example: Example, solved: bool) -> str:
    """The same with the reasons before the answer, which comes in a sentence that can be found again."""
    return f"Q: {example.question}\nA:" + (f" {example.reasons} {CONCLUDE} {example.answer}." if solved else "")


def step_by_step(example: Example, solved: bool) -> str:
    """No example shows how: a sentence asks for the reasons."""
    return f"Q: {example.question}\nA: {THINK}" + (f" {example.reasons} {CONCLUDE} {example.answer}." if solved else "")


def instruction_prompt(instruction: str, given: str = "") -> str:
    """(instruction, input, output) as a prompt for the output, with and without an input."""
    shown = f"\n\nInput:\n{given}" if given else ""
    return f"Instruction:\n{instruction}{shown}\n\nOutput:\n"


def as_instruction(example: Example, solved: bool) -> str:
    """The question as the input of an instruction triple."""
    return instruction_prompt(ANSWER, example.question) + (example.answer if solved else "")


def as_instruction_alone(example: Example, solved: bool) -> str:
    """The question as the instruction of a triple without an input."""
    return instruction_prompt(example.question) + (example.answer if solved else "")


def few_shot_prompt(
    item: Example,
    pool: Sequence[Example],
    shots: int,
    fits: Callable[[str], bool],
    seed: int,
    render: Render = question_answer,
    opening: str = "",
) -> str:
    """An opening (a description of the task), up to `shots` solved examples, and the item unsolved.

    The examples come from the pool without the item itself, in an order that the seed and the item decide. Whole
    examples are dropped, the first ones first, until the prompt fits. Raises ValueError when even the item alone does
    not fit, or the pool has too few.
    """
    others = [example for example in pool if example.question != item.question]
    if shots > len(others):
        raise ValueError(f"{shots} examples are asked for, the pool has {len(others)} besides the item itself")
    chosen = random.Random(f"{seed}/{item.question}").sample(others, shots)
    for first in range(len(chosen) + 1):
        shown = [render(example, True) for example in chosen[first:]]
        prompt = "\n\n".join([*([opening] if opening else []), *shown, render(item, False)])
        if fits(prompt):
            return prompt
    raise ValueError(f"the item alone does not fit: {item.question[:60]!r}")


def final_answer(text: str) -> str | None:
    """What the last "The answer is ..." names, else the last number, else None. Without a full stop or commas."""
    stated = re.findall(rf"{CONCLUDE}:?\s+(.+?)(?:\.(?:\s|$)|\n|$)", text, re.IGNORECASE)
    if stated:
        return stated[-1].strip().rstrip(".").replace(",", "")
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return numbers[-1].replace(",", "") if numbers else None


def majority(answers: Sequence[str | None]) -> str | None:
    """Self-consistency: the answer that comes most often, of equals the first; None counts as no answer."""
    given = [answer for answer in answers if answer is not None]
    return Counter(given).most_common(1)[0][0] if given else None
