"""The estimated time left: first a guess from the machine's speed, then from the time that the stages took."""

from pathlib import Path

import pytest

from tutelage.recipe.conductor import GUESS, Conductor
from tutelage.recipe.demo import pace_of, steps
from tutelage.recipe.preset import DEMO, TOY


def before_the_first_stage(pace: float) -> Conductor:
    return Conductor(Path("nowhere"), {"stages": {}}, steps(Path("nowhere"), DEMO, 0), DEMO.seconds, pace)


def test_before_anything_has_run_the_guess_holds() -> None:
    conductor = before_the_first_stage(4.0)
    assert conductor.left(conductor.plan[0], 0.0, 0.0) == pytest.approx(4.0 * sum(DEMO.seconds.values()))


def test_measured_time_outweighs_the_guess() -> None:
    """A guess of 4, and stages that took twice their time: by hand, (30 x 4 + 2 x done) / (30 + done)."""
    conductor = before_the_first_stage(4.0)
    done = sum(DEMO.seconds[name] for name in ("data", "tokenizer", "pretrain"))
    conductor.planned, conductor.spent = done, 2 * done
    left = conductor.left(conductor.plan[3], 0.0, 0.0)
    assert GUESS == 30
    assert left == pytest.approx((30 * 4 + 2 * done) / (30 + done) * (sum(DEMO.seconds.values()) - done))


def test_half_of_a_stage_that_resumed_at_a_quarter() -> None:
    """A quarter of pretraining was run, in the time of all: the pace goes from 1 to (30 + all) / (30 + all / 4)."""
    conductor = before_the_first_stage(1.0)
    conductor.resumed = 0.25
    whole = DEMO.seconds["pretrain"]
    left = conductor.left(conductor.plan[2], 0.5, float(whole))
    later = sum(DEMO.seconds[name] for name in ("sft", "rank", "reward", "ppo", "ppo-ptx", "evaluate", "report"))
    assert left == pytest.approx((30 + whole) / (30 + whole / 4) * (later + whole / 2))


def test_a_slower_machine_takes_longer_but_not_by_all_of_it() -> None:
    assert pace_of(DEMO, 820.0) == 1.0 == pace_of(DEMO, 4_000.0)  # a faster machine gets no shorter estimate
    assert pace_of(DEMO, 820.0 / 16) == pytest.approx(8.0)
    assert pace_of(TOY, 1.0) == 1.0  # its seconds are mostly the start of processes
