"""Zero-, one- and few-shot prompts in the style of the GPT-2 and GPT-3 papers.

    item, pool of examples, shots -> few_shot_prompt -> text for a language model to continue

Few-shot: K examples in random order, separated by blank lines, as many as fit (Brown et al. 2020, section 2 and figure
2.1). Chain of thought: examples that show their reasoning (Wei et al. 2022); one sentence that asks for reasoning
(Kojima et al. 2022); the majority answer of several sampled chains (Wang et al. 2022). Instruction triples follow
Self-Instruct (Wang et al. 2023), in our own wording. Only strings are handled here, no models.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

THINK = "Let's think step by step."  # Kojima et al. 2022: the best of the sixteen sentences they tried
CONCLUDE = "The answer is"
ANSWER_INSTRUCTION = "Answer the question."


@dataclass(frozen=True)
class Example:
    """One item of a task with its solution."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()  # the answer and the wrong choices; empty if the answer is free text
    reasons: str = ""  # the reasoning that leads to the answer, for chains of thought


Render = Callable[[Example, bool], str]  # (example, whether to include its answer) -> text


def question_answer(example: Example, solved: bool) -> str:
    """Q and A on one line each. An unsolved example ends where the answer would begin."""
    return f"Q: {example.question}\nA:" + (f" {example.answer}" if solved else "")


def with_reasons(example: Example, solved: bool) -> str:
    """Like `question_answer`, with the reasoning before the answer, in a sentence that `final_answer` can find."""
    return f"Q: {example.question}\nA:" + (f" {example.reasons} {CONCLUDE} {example.answer}." if solved else "")


def step_by_step(example: Example, solved: bool) -> str:
    """Zero-shot chain of thought: the answer begins with a sentence that asks for reasoning."""
    return f"Q: {example.question}\nA: {THINK}" + (f" {example.reasons} {CONCLUDE} {example.answer}." if solved else "")


def instruction_prompt(instruction: str, given: str = "") -> str:
    """An (instruction, input, output) triple as a prompt for the output. The input is optional."""
    input_block = f"\n\nInput:\n{given}" if given else ""
    return f"Instruction:\n{instruction}{input_block}\n\nOutput:\n"


def as_instruction(example: Example, solved: bool) -> str:
    """The question as the input of an instruction triple."""
    return instruction_prompt(ANSWER_INSTRUCTION, example.question) + (example.answer if solved else "")


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
    """An opening (the task's description), up to `shots` solved examples, then the unsolved item.

    The examples are drawn from the pool without the item itself; the seed and the item's question decide which ones and
    in which order. Whole examples are dropped from the front until the prompt fits. Raises ValueError if the item does
    not fit without any example, or if the pool is too small.
    """
    others = [example for example in pool if example.question != item.question]
    if shots > len(others):
        raise ValueError(f"{shots} examples were requested, but the pool has {len(others)} besides the item itself")
    chosen = random.Random(f"{seed}/{item.question}").sample(others, shots)
    description = [opening] if opening else []
    for first in range(len(chosen) + 1):
        examples = [render(example, True) for example in chosen[first:]]
        prompt = "\n\n".join([*description, *examples, render(item, False)])
        if fits(prompt):
            return prompt
    raise ValueError(f"the prompt does not fit even without examples: {item.question[:60]!r}")


def final_answer(text: str) -> str | None:
    """The answer in the last "The answer is ...", else the last number, else None; full stop and commas removed."""
    stated = re.findall(rf"{CONCLUDE}:?\s+(.+?)(?:\.(?:\s|$)|\n|$)", text, re.IGNORECASE)
    if stated:
        return stated[-1].strip().rstrip(".").replace(",", "")
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return numbers[-1].replace(",", "") if numbers else None


def majority(answers: Sequence[str | None]) -> str | None:
    """Self-consistency: the most frequent answer, the first one on a tie. None entries are ignored."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None
