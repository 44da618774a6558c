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
    """A guess of 4, and stages that take 2: by hand, (30 x 4 + 2 x 173) / (30 + 173) of the 363 s to come."""
    conductor = before_the_first_stage(4.0)
    done = {name: DEMO.seconds[name] for name in ("data", "tokenizer", "pretrain")}
    assert GUESS == 30 and sum(done.values()) == 173
    conductor.planned, conductor.spent = 173, 2 * 173
    left = conductor.left(conductor.plan[3], 0.0, 0.0)
    assert left == pytest.approx((30 * 4 + 2 * 173) / (30 + 173) * (sum(DEMO.seconds.values()) - 173))


def test_half_of_a_stage_that_resumed_at_a_quarter() -> None:
    """A quarter of 155 s was run, in 155 s: the pace goes from 1 to (30 + 155) / (30 + 38.75)."""
    conductor = before_the_first_stage(1.0)
    conductor.resumed = 0.25
    left = conductor.left(conductor.plan[2], 0.5, 155.0)
    later = sum(DEMO.seconds[name] for name in ("sft", "rank", "reward", "ppo", "ppo-ptx", "evaluate", "report"))
    assert left == pytest.approx((30 + 155) / (30 + 38.75) * (later + 77.5))


def test_a_slower_machine_takes_longer_but_not_by_all_of_it() -> None:
    assert pace_of(DEMO, 820.0) == 1.0 == pace_of(DEMO, 4_000.0)  # a faster machine gets no shorter estimate
    assert pace_of(DEMO, 820.0 / 16) == pytest.approx(8.0)
    assert pace_of(TOY, 1.0) == 1.0  # its seconds are mostly the start of processes
