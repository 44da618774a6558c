"""Suggestions: questions of the run's own held-out prompts that stand on their own, in the language of the page."""

import json
from pathlib import Path

import pytest

from tutelage.server.suggestions import for_page, stands_alone, suggest, suggestions_of


@pytest.mark.parametrize(
    "turn, alone",
    [
        ("What kind of music do you like?", True),
        ("Where are you right now?", True),
        ("你喜欢看什么电影？", True),
        ("What do you like about it?", False),  # about what?
        ("What did you do?", False),  # when?
        ("Are you sure about that one?", False),
        ("You?", False),
        ("I like music. What do you like?", False),  # not only a question
        ("who the HECK are you?", False),
        ("What is the capital of France?", False),  # knowledge, not chat
        ("你为什么喜欢他？", False),
    ],
)
def test_a_suggestion_stands_on_its_own(turn: str, alone: bool) -> None:
    assert stands_alone(turn) is alone


def test_the_most_ordinary_come_first_and_no_two_are_alike() -> None:
    turns = ["What music do you like?"] * 3 + ["Do you play many games?", "Which music do you play?", "hi", "no"]
    turns += ["Do you like xylophones?", "Are you in class?", "I was in class", "many games"]
    assert suggest(turns) == ("What music do you like?", "Do you play many games?", "Are you in class?")


def test_a_run_suggests_what_is_beside_it(tmp_path: Path) -> None:
    run = tmp_path / "demo" / "ppo-ptx"
    run.mkdir(parents=True)
    assert suggestions_of(run) == ()
    (tmp_path / "demo" / "data").mkdir()
    lines = [
        {"prompt": [{"role": "user", "content": text}], "source": "s", "split": "test"}
        for text in ("How are you today?", "你今天好吗？", "lol")
    ]
    prompts = tmp_path / "demo" / "data" / "prompts.test.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert suggestions_of(run) == ("How are you today?", "你今天好吗？")
    prompts.write_text("not JSON", encoding="utf-8")
    assert suggestions_of(run) == ()


def test_a_page_shows_its_language_if_the_model_speaks_it() -> None:
    both = ("How are you today?", "你今天好吗？")
    assert for_page(both, "zh") == ["你今天好吗？"] and for_page(both, "en") == ["How are you today?"]
    assert for_page(both[:1], "zh") == ["How are you today?"]  # what the model can answer, not what it cannot
    assert for_page((), "zh") == []
