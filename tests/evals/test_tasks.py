"""Tasks: likelihoods by definition, and full marks for a model that knows the answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.evals.tasks import (
    TasksConfig,
    choice_scores,
    choose,
    generate_answers,
    load_task,
    make_sums,
    read_tasks,
    tasks,
)
from tutelage.runs.folder import save_policy
from tutelage.text.tokenizer import Tokenizer

CONFIG = TasksConfig(shots=(0, 1), count=6, samples=3, max_tokens=8, dtype="fp32")


def test_scores_are_mean_log_likelihoods(make_gpt: Any, tokenizer: Tokenizer) -> None:
    """One forward pass per choice over prompt and choice, and the slice of its log-probabilities by hand."""
    model, prompt, choices = make_gpt("llama"), "Q: the cat?\nA:", ["mat", "a small dog", "cat"]
    start = tokenizer.encode(prompt)
    for choice, score in zip(choices, choice_scores(model, tokenizer, prompt, choices), strict=True):
        ids = [*start, *tokenizer.encode(f" {choice}")]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids]))[0].log_softmax(-1)
        own = [float(logprobs[t - 1, ids[t]]) for t in range(len(start), len(ids))]
        assert float(score) == pytest.approx(sum(own) / len(own), abs=1e-5)


def test_every_item_has_its_answer_among_different_choices() -> None:
    for name in read_tasks():
        _, pool = load_task(name)
        assert len({example.question for example in pool}) == len(pool) >= 48
        for example in pool:
            assert example.answer in example.choices and len(set(example.choices)) == len(example.choices) == 4
        first = [example.choices.index(example.answer) for example in pool]
        assert (
            max(first.count(place) for place in range(4)) < len(pool) / 2
        )  # the position does not give the answer away


def test_sums_add_up() -> None:
    for example in make_sums(40, 3):
        numbers = [int(word) for word in example.question.replace("?", "").split() if word.isdigit()]
        assert int(example.answer) == numbers[0] + numbers[1] - numbers[2]
        assert example.reasons.endswith(f"= {example.answer}.")
    assert make_sums(40, 3) == make_sums(40, 3) != make_sums(40, 4)


class Oracle:
    """Log-likelihoods of a model that knows the answers. It replaces the scoring, not the decision."""

    def __init__(self, answers: set[str]):
        self.answers = answers

    def __call__(self, model: Any, tokenizer: Any, prompt: str, choices: Any) -> torch.Tensor:
        return torch.tensor([0.0 if choice in self.answers else -1.0 for choice in choices])


def test_a_model_that_knows_gets_all_right(
    make_gpt: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.evals import tasks as stage

    opening, pool = load_task("opposites")
    model = make_gpt("llama", context=4096)
    for item in pool[:6]:
        monkeypatch.setattr(stage, "choice_scores", Oracle({item.answer}))
        assert choose(model, tokenizer, opening, [item, *pool[20:]], 2, TasksConfig(count=1)) == 1.0
        monkeypatch.setattr(stage, "choice_scores", Oracle(set(item.choices) - {item.answer}))
        assert choose(model, tokenizer, opening, [item, *pool[20:]], 2, TasksConfig(count=1)) == 0.0


def test_generated_answers_are_compared_with_the_right_ones(
    make_gpt: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.evals import tasks as stage
    from tutelage.sampling.sampler import Response

    pool = make_sums(6, 0)
    model = make_gpt("llama", context=4096)

    def writes(texts: list[str]) -> Any:
        def generate(model: Any, prompts: Any, seeds: Any, *rest: Any) -> list[list[Response]]:
            samples = len(seeds) // len(prompts)
            return [[Response(tokenizer.encode(text), [], True)] * samples for text in texts]

        return generate

    right = [f" Well. The answer is {example.answer}.\n\nQ: next? A: 999" for example in pool]
    monkeypatch.setattr(stage, "generate", writes(right))
    assert generate_answers(model, tokenizer, pool, "with reasons, majority", CONFIG) == 1.0
    monkeypatch.setattr(stage, "generate", writes([*right[:3], " 999", " none", ""]))
    assert generate_answers(model, tokenizer, pool, "plain, 0-shot", CONFIG) == 0.5


def test_the_command_writes_its_table(make_gpt: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_policy(tmp_path / "model", make_gpt("llama", context=4096), tokenizer)
    tasks(tmp_path / "model", tmp_path / "out", CONFIG)
    table = json.loads((tmp_path / "out/tasks.json").read_text())
    assert set(table) == {"capitals", "opposites", "sums"} and set(table["capitals"]) == {"0-shot", "1-shot"}
    assert all(0 <= value <= 1 for row in table.values() for value in row.values())
