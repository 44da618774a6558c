"""Win rates by hand, and the coverage of the confidence interval when prompts of a conversation are correlated."""

import numpy as np
import pytest

from tutelage.evals.preference import preference, win_rate


def alone(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def test_ties_count_one_half() -> None:
    rate, _ = win_rate([1.0, 0.5, 0.0, 1.0], alone(4), 0)
    assert rate == 2.5 / 4
    assert [preference(a, 1.0) for a in (2.0, 1.0, 0.5)] == [1.0, 0.5, 0.0]


def test_against_itself_the_rate_is_one_half_without_spread() -> None:
    assert win_rate([0.5] * 30, alone(30), 0) == (0.5, (0.5, 0.5))


def test_swapping_the_sides_mirrors_rate_and_interval() -> None:
    wins = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 80)
    names = [str(i // 2) for i in range(80)]
    rate, (low, high) = win_rate(wins.tolist(), names, 3)
    mirrored, (other_low, other_high) = win_rate((1 - wins).tolist(), names, 3)
    assert mirrored == pytest.approx(1 - rate)
    assert (other_low, other_high) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("count", "half_width"), [(100, 0.098), (300, 0.057), (1000, 0.031)])
def test_half_widths_of_the_table(count: int, half_width: float) -> None:
    """95 % at p = .5 for independent prompts: 9.8, 5.7, 3.1 points."""
    wins = [float(i % 2) for i in range(count)]
    _, (low, high) = win_rate(wins, alone(count), 0)
    assert (high - low) / 2 == pytest.approx(half_width, abs=0.006)


def test_correlated_prompts_widen_the_interval() -> None:
    """Two prompts that always agree are one observation: the interval widens by sqrt 2."""
    wins = [float(i // 2 % 2) for i in range(400)]
    widths = []
    for names in (alone(400), [str(i // 2) for i in range(400)]):
        _, (low, high) = win_rate(wins, names, 0)
        widths.append(high - low)
    assert widths[1] / widths[0] == pytest.approx(2**0.5, rel=0.1)


@pytest.mark.parametrize("by_conversation", [True, False])
def test_the_interval_has_its_nominal_coverage(by_conversation: bool) -> None:
    """300 evaluations of 120 prompts, three per conversation. Resampling single prompts covers the truth too rarely."""
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        strength = np.repeat(random.choice([0.15, 0.95], 40, p=[0.4, 0.6]), 3)  # the truth is .63
        wins = (random.random(120) < strength).astype(float)
        names = [str(i // 3 if by_conversation else i) for i in range(120)]
        _, (low, high) = win_rate(wins.tolist(), names, trial)
        covered += low <= 0.4 * 0.15 + 0.6 * 0.95 <= high
    if by_conversation:
        assert 0.90 < covered / 300 < 0.98
    else:
        assert covered / 300 < 0.87  # what the bootstrap by conversation is for


def test_unequal_conversations_weigh_by_their_prompts() -> None:
    """A conversation of 3 lost prompts and one of 1 won prompt: a resample wins none, one or both of its two."""
    rate, (low, high) = win_rate([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"], 0)
    assert rate == 0.25
    assert (low, high) == (0.0, 1.0)
