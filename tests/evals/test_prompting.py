"""Prompts as the papers print them, and the answers extracted from generated texts."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.evals.prompting import (
    Example,
    as_instruction_alone,
    few_shot_prompt,
    final_answer,
    instruction_prompt,
    majority,
    step_by_step,
    with_reasons,
)

POOL = [Example(f"is {i} even?", "yes" if i % 2 == 0 else "no") for i in range(12)]


def always_fits(prompt: str) -> bool:
    return True


def test_zero_one_and_few_shots() -> None:
    assert few_shot_prompt(POOL[3], POOL, 0, always_fits, 0) == "Q: is 3 even?\nA:"
    described = few_shot_prompt(POOL[3], POOL, 0, always_fits, 0, opening="Say yes or no.")
    assert described == "Say yes or no.\n\nQ: is 3 even?\nA:"
    blocks = few_shot_prompt(POOL[3], POOL, 5, always_fits, 0).split("\n\n")
    assert len(blocks) == 6 and blocks[-1] == "Q: is 3 even?\nA:"
    solved = {f"Q: {e.question}\nA: {e.answer}" for e in POOL}
    assert set(blocks[:-1]) <= solved and len(set(blocks[:-1])) == 5


@given(st.integers(0, 11), st.integers(0, 11), st.integers(0, 10**6))
def test_the_item_is_never_among_its_examples(which: int, shots: int, seed: int) -> None:
    prompt = few_shot_prompt(POOL[which], POOL, shots, always_fits, seed)
    assert prompt.count(POOL[which].question) == 1 and prompt.count("Q: ") == shots + 1


def test_the_order_comes_from_the_seed() -> None:
    prompts = {few_shot_prompt(POOL[0], POOL, 4, always_fits, seed) for seed in range(20)}
    assert len(prompts) > 15
    assert few_shot_prompt(POOL[0], POOL, 4, always_fits, 7) == few_shot_prompt(POOL[0], POOL, 4, always_fits, 7)


def test_whole_examples_are_dropped_until_the_prompt_fits() -> None:
    whole = few_shot_prompt(POOL[0], POOL, 6, always_fits, 1).split("\n\n")
    short = few_shot_prompt(POOL[0], POOL, 6, lambda text: len(text) <= 90, 1)
    kept = short.split("\n\n")
    assert kept == whole[-len(kept) :] and 1 < len(kept) < 7 and len(short) <= 90
    assert len("\n\n".join(whole[-len(kept) - 1 :])) > 90  # one more would not have fitted
    with pytest.raises(ValueError, match="does not fit"):
        few_shot_prompt(POOL[0], POOL, 6, lambda text: False, 1)
    with pytest.raises(ValueError, match="the pool has 11"):
        few_shot_prompt(POOL[0], POOL, 12, always_fits, 1)


def test_chains_of_thought() -> None:
    sums = Example("What is 2 + 3 - 1?", "4", reasons="2 + 3 = 5. 5 - 1 = 4.")
    other = Example("What is 1 + 1?", "2", reasons="1 + 1 = 2.")
    prompt = few_shot_prompt(sums, [sums, other], 1, always_fits, 0, with_reasons)
    assert prompt == "Q: What is 1 + 1?\nA: 1 + 1 = 2. The answer is 2.\n\nQ: What is 2 + 3 - 1?\nA:"
    assert step_by_step(sums, False) == "Q: What is 2 + 3 - 1?\nA: Let's think step by step."


def test_instructions_with_and_without_an_input() -> None:
    assert instruction_prompt("Say hello.") == "Instruction:\nSay hello.\n\nOutput:\n"
    assert instruction_prompt("Add.", "1, 2") == "Instruction:\nAdd.\n\nInput:\n1, 2\n\nOutput:\n"
    item, other = Example("What is 1 + 2?", "3"), Example("What is 1 + 1?", "2")
    shown = few_shot_prompt(item, [item, other], 1, always_fits, 0, as_instruction_alone)
    assert shown == "Instruction:\nWhat is 1 + 1?\n\nOutput:\n2\n\nInstruction:\nWhat is 1 + 2?\n\nOutput:\n"


@pytest.mark.parametrize(
    "text, answer",
    [
        ("2 + 3 = 5. The answer is 4.", "4"),
        ("The answer is 3. No: the answer is 1,234.\nQ: next", "1234"),
        ("so 7 apples, then 12 - 3 = 9", "9"),
        ("-5", "-5"),
        ("no idea", None),
        ("", None),
    ],
)
def test_the_answer_is_found_in_the_text(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_majority() -> None:
    assert majority(["4", "5", "4"]) == "4"
    assert majority(["5", "4", "4", "5"]) == "5"  # of equals the first
    assert majority([None, "3", None]) == "3" and majority([None]) is None and majority([]) is None


@pytest.mark.parametrize("k, expected", [(1, 0.6), (3, 0.648), (5, 0.68256)])
def test_self_consistency_of_independent_answers(k: int, expected: float) -> None:
    """Each is right with probability .6 and all wrong ones are equal: the binomial majority, over all outcomes."""
    total = 0.0
    for outcome in product([True, False], repeat=k):
        weight = math.prod(0.6 if right else 0.4 for right in outcome)
        total += weight * (majority(["right" if right else "wrong" for right in outcome]) == "right")
    assert total == pytest.approx(expected, abs=1e-9)
