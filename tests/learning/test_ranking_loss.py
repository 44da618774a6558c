"""The ranking loss against closed forms, torch's binary cross entropy and TRL's loss."""

import json
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tutelage.learning.losses import pair_accuracy, ranking_loss, winner_mask


def loss_of(scores: list[float], ranks: list[int]) -> float:
    return ranking_loss(torch.tensor([scores]), torch.tensor([ranks])).item()


def gradient_of(scores: list[float], ranks: list[int]) -> list[float]:
    r = torch.tensor([scores], requires_grad=True)
    return torch.autograd.grad(ranking_loss(r, torch.tensor([ranks])), r)[0][0].tolist()


def by_definition(scores: list[float], ranks: list[int]) -> float:
    """Ouyang et al. 2022, eq. 1, in Python floats, over the pairs without ties."""
    pairs = [(a, b) for a in range(len(ranks)) for b in range(len(ranks)) if ranks[a] < ranks[b]]
    return -sum(math.log(1 / (1 + math.exp(scores[b] - scores[a]))) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("K", range(2, 10))
def test_equal_scores_cost_log_2(K: int) -> None:
    assert loss_of([0.3] * K, list(range(1, K + 1))) == pytest.approx(0.693147, abs=1e-6)


def test_values() -> None:
    assert loss_of([2.0, 1.0, 0.0], [1, 2, 3]) == pytest.approx(0.251150, abs=1e-6)
    assert loss_of([1.5, 0.2, -0.3, 0.9], [1, 3, 4, 2]) == pytest.approx(0.328670, abs=1e-6)


def test_gradient_at_equal_scores() -> None:
    """In order of rank, best to worst."""
    assert gradient_of([0.0] * 2, [1, 2]) == pytest.approx([-0.5, 0.5])
    assert gradient_of([0.0] * 3, [1, 2, 3]) == pytest.approx([-1 / 3, 0, 1 / 3])
    assert gradient_of([0.0] * 4, [1, 2, 3, 4]) == pytest.approx([-0.25, -1 / 12, 1 / 12, 0.25])
    assert gradient_of([0.0] * 9, list(range(1, 10))) == pytest.approx([-1 / 9 + k / 36 for k in range(9)])
    assert sum(gradient_of([1.5, 0.2, -0.3, 0.9], [3, 1, 4, 2])) == pytest.approx(0, abs=1e-6)


def test_two_responses_are_bradley_terry() -> None:
    scores = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    expected = F.binary_cross_entropy_with_logits(scores[:, 0] - scores[:, 1], torch.ones(7))
    torch.testing.assert_close(ranking_loss(scores, torch.tensor([[1, 2]] * 7)), expected)


def test_invariances() -> None:
    """Offset per prompt, swapped pair, order of presentation, scale."""
    scores, ranks = [1.5, 0.2, -0.3, 0.9], [2, 1, 4, 3]
    base = loss_of(scores, ranks)
    assert loss_of([s + 100 for s in scores], ranks) == pytest.approx(base, abs=1e-4)
    assert gradient_of([s + 4 for s in scores], ranks) == pytest.approx(gradient_of(scores, ranks), abs=1e-6)
    assert loss_of([1.3, 0.4], [2, 1]) == pytest.approx(loss_of([1.3, 0.4], [1, 2]) + 0.9, abs=1e-6)
    assert loss_of(scores[::-1], ranks[::-1]) == pytest.approx(base, abs=1e-6)
    assert loss_of([300.0, 200, 100], [1, 2, 3]) == pytest.approx(0, abs=1e-6)
    assert loss_of([100.0, 200, 300], [1, 2, 3]) > 100


def test_ties_leave_numerator_and_denominator() -> None:
    assert loss_of([2.0, 1.0, 0.0], [1, 1, 3]) == pytest.approx((0.126928 + 0.313262) / 2, abs=1e-6)
    assert gradient_of([2.0, 1.0], [1, 1]) == [0, 0]
    scores, ranks = torch.tensor([[2.0, 1.0, 0.0], [5.0, 1.0, 9.0]]), torch.tensor([[1, 2, 3], [2, 2, 2]])
    assert ranking_loss(scores, ranks).item() == pytest.approx(
        0.251150, abs=1e-6
    )  # a prompt with only ties does not count
    assert ranking_loss(scores[1:], ranks[1:]).item() == 0.0


def test_prompts_have_equal_weight_for_any_number_of_responses() -> None:
    scores = [[2.0, 1.0, 0.0, 7.0], [0.4, -0.2, math.nan, math.nan], [1.5, 0.2, -0.3, 0.9]]
    ranks = [[2, 1, 3, 3], [2, 1, 1, 9], [1, 3, 4, 2]]
    exists = [[True] * 4, [True, True, False, False], [True] * 4]
    expected = (
        by_definition(scores[0], ranks[0]) + by_definition([0.4, -0.2], [2, 1]) + by_definition(scores[2], ranks[2])
    ) / 3
    actual = ranking_loss(torch.tensor(scores), torch.tensor(ranks), torch.tensor(exists))
    assert actual.item() == pytest.approx(expected, abs=1e-6)


def test_one_forward_per_response_equals_one_per_pair() -> None:
    """In value and gradient."""
    states, weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), torch.ones(6, requires_grad=True)
    grouped = ranking_loss((states @ weight)[None], torch.arange(5)[None])
    pairs = list(combinations(range(5), 2))
    losses = [-F.logsigmoid(states[a] @ weight - states[b] @ weight) for a, b in pairs]
    pairwise = torch.stack(losses).mean()
    torch.testing.assert_close(grouped, pairwise)
    torch.testing.assert_close(torch.autograd.grad(grouped, weight), torch.autograd.grad(pairwise, weight))


def test_seven_wins_of_ten_make_a_margin_of_logit_seven_tenths() -> None:
    """The gradient in the margin is 0 at 0.847298, and only there."""

    def slope(margin: float) -> float:
        difference = torch.tensor(margin, requires_grad=True)
        scores = torch.stack([difference, torch.zeros(())]).repeat(10, 1)
        loss = ranking_loss(scores, torch.tensor([[1, 2]] * 7 + [[2, 1]] * 3))
        return torch.autograd.grad(loss, difference)[0].item()

    assert slope(0.847298) == pytest.approx(0, abs=1e-6)
    assert slope(0.8) < -0.005 < 0.005 < slope(0.9)


TRL = json.loads(Path(__file__).with_name("trl_reward_loss.json").read_text())["cases"]


@pytest.mark.parametrize("case", TRL, ids=lambda case: f"K={len(case['ranks'])}")
def test_the_loss_is_trls(case: dict) -> None:
    """Expected values computed by TRL's RewardTrainer (scripts/trl_reward_loss.py)."""
    assert loss_of(case["scores"], case["ranks"]) == pytest.approx(case["loss"], rel=1e-5)


def test_pairs_right_is_a_count_in_which_a_tie_is_half() -> None:
    """Over all strict pairs of two rankings, the second one shorter. By hand: 2.5 of 3 and 0 of 1."""
    scores = torch.tensor([[2.0, 1.0, 1.0], [0.0, 5.0, 0.0]])
    ranks = torch.tensor([[1, 2, 3], [1, 2, 1]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert pair_accuracy(scores, winner_mask(ranks, mask)) == (2.5 + 0) / 4
    assert pair_accuracy(torch.zeros(1, 4), winner_mask(torch.tensor([[1, 2, 3, 3]]))) == 0.5
