"""What a command prints at its end, against lines written by hand."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tutelage.runs.ending import Ending, Figure, command, counted, first_and_last, short_training, training_loss
from tutelage.runs.log import Progress
from tutelage.runs.run import Run, RunConfig


def test_a_run_that_improved() -> None:
    out = Path("runs/sft")
    ending = Ending(
        "fine-tuned on 1,204 conversations in 61 steps",
        [Figure("held-out loss", 2.6412, start=3.21, better="lower")],
        next=[command("chat", out), command("rank", "--policy", out, "...")],
    )
    assert ending.lines(out) == [
        "runs/sft: fine-tuned on 1,204 conversations in 61 steps",
        "  held-out loss 3.21 -> 2.641",
        "  next: tutelage chat runs/sft",
        "    or: tutelage rank --policy runs/sft ...",
    ]


def test_a_run_that_ends_where_it_began_says_so() -> None:
    figures = [
        Figure("held-out loss", 3.3, start=3.21, better="lower"),
        Figure("score", 0.5, start=0.5, better="higher"),
        Figure("held-out accuracy", None, start=0.5, better="higher"),
    ]
    assert Ending("trained", figures, short_training(1, "raise --tokens")).lines(Path("x")) == [
        "x: trained",
        "  held-out loss 3.21 -> 3.3: not lower than at the start",
        "  score 0.5 -> 0.5: not higher than at the start",
        "  warning: only one training step was taken; raise --tokens",
    ]
    assert short_training(0, "raise --tokens") == [
        "no training step was taken, so the model is the one it started from; raise --tokens"
    ]
    assert short_training(2, "raise --tokens") == []


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        (Figure("accuracy", 0.683, note="chance is 50 %", format=".1%"), "accuracy 68.3% (chance is 50 %)"),
        (Figure("perplexity", 12.0, start=20.5, better="lower", note="n = 3"), "perplexity 20.5 -> 12 (n = 3)"),
        (Figure("score", 2.0, start=1.0), "score 1 -> 2"),
        (Figure("parameters", 4_194_304, format=",d"), "parameters 4,194,304"),
    ],
)
def test_figures(figure: Figure, line: str) -> None:
    assert figure.line == line


def test_commands_can_be_pasted_into_a_shell() -> None:
    assert command("chat", Path("my runs/sft")) == "tutelage chat 'my runs/sft'"


def test_the_first_and_the_last_logged_value() -> None:
    lines = [{"step": 1}, {"step": 2, "loss": 3.0}, {"step": 3, "loss": None}, {"step": 4, "loss": 2.0}, {"step": 5}]
    assert first_and_last(lines, "loss") == (3.0, 2.0)
    assert first_and_last(lines, "accuracy") == (None, None)
    assert training_loss(lines).line == "training loss 3 -> 2 (first and last step)"
    assert training_loss(lines[1:2]).line == "training loss 3"


def test_counts() -> None:
    assert [counted(n, "step") for n in (0, 1, 1204)] == ["0 steps", "1 step", "1,204 steps"]


@pytest.mark.parametrize("mode", ["lines", "json"])
def test_a_parent_gets_the_ending_in_one_message(
    mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUTELAGE_PROGRESS", mode)
    Progress("sft").end(["runs/sft: made", "  next: chat"])
    printed = capsys.readouterr()
    if mode == "json":
        assert json.loads(printed.out) == {"stage": "sft", "ending": ["runs/sft: made", "  next: chat"]}
    else:
        assert printed.err == "runs/sft: made\n  next: chat\n"


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    pass


def test_a_finished_run_says_so_once_and_makes_a_lost_file_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    product = tmp_path / "ranks.jsonl"

    def run() -> bool:
        with Run(tmp_path / "ranks.run", stage="rank", config=Config(), inputs={}, product=product) as run:
            if not run.finished:
                product.write_text("{}\n")
                run.finish({}, Ending("ranked"))
            return run.finished

    assert not run()
    assert capsys.readouterr().err == f"{product}: ranked\n"
    assert run()
    again = capsys.readouterr().err
    assert again.startswith(f"{product}: already finished on ") and again.count("\n") == 1
    product.unlink()
    assert not run()
    assert product.exists()
