"""Prefill in groups of similar length: the grouping against all others, the results against each prompt alone."""

from itertools import combinations
from typing import Any

import pytest
import torch

from tutelage.sampling import prefill as module
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.prefill import PASS_COST, group_by_length, prefill
from tutelage.sampling.sampler import generate

PROMPTS = [[5, 17, 260], [33, 8, 120, 77, 201, 9, 45], [61], [2, 2, 290, 14, 15], [9, 9, 4], [7] * 20]


def cost(groups: list[list[int]], lengths: list[int]) -> int:
    return sum(max(lengths[row] for row in rows) * len(rows) + PASS_COST for rows in groups)


@pytest.mark.parametrize(
    "lengths",
    [[1], [40] * 16, [1, 90, 200, 300, 900], [900, 10, 20, 880, 15, 500, 510, 30], [100, 300, 300, 350, 700, 701, 702]],
    ids=str,
)
def test_the_groups_cost_least(lengths: list[int]) -> None:
    """Tries all ways to cut the sorted lengths; a group that is not contiguous is never cheaper."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    every = []
    for count in range(len(order)):
        for cuts in combinations(range(1, len(order)), count):
            ends = [0, *cuts, len(order)]
            every.append(cost([order[a:b] for a, b in zip(ends, ends[1:], strict=False)], lengths))
    groups = group_by_length(lengths)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    assert cost(groups, lengths) == min(every)


def test_similar_lengths_are_one_group_and_different_ones_are_more() -> None:
    assert len(group_by_length([40] * 64)) == 1
    assert len(group_by_length([10] * 64 + [90] * 64)) == 2


@pytest.fixture(params=[1, PASS_COST], ids=["apart", "together"])
def groups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of groups."""
    monkeypatch.setattr(module, "PASS_COST", request.param)
    return len(group_by_length([len(prompt) for prompt in PROMPTS]))


def test_every_prompt_is_processed_as_if_alone(make_gpt: Any, family: str, groups: int) -> None:
    """Hidden states, the residual stream after the lowest block, and (through the next token) keys and values."""
    assert groups in (1, 5)
    model = make_gpt(family)
    with torch.inference_mode():
        cache, hidden, residual = prefill(model, PROMPTS, 4, layers=1)
        assert cache.length == 20 and residual is not None
        pads = torch.tensor([20 - len(prompt) for prompt in PROMPTS])
        visible = (torch.arange(21) >= pads[:, None])[:, None, None]
        then = model.trunk(torch.full((len(PROMPTS), 1), 11), cache.length - pads[:, None], visible, cache)[:, -1]
        for row, prompt in enumerate(PROMPTS):
            alone = model.trunk(torch.tensor([[*prompt, 11]]))[0]
            torch.testing.assert_close(hidden[row], alone[-2], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(then[row], alone[-1], atol=1e-5, rtol=1e-4)
            expected = model.lower(torch.tensor([prompt]), 1).x[0]
            torch.testing.assert_close(residual[row, 20 - len(prompt) :], expected, atol=1e-5, rtol=1e-4)


def test_responses_are_those_to_each_prompt_alone(make_gpt: Any, family: str, groups: int) -> None:
    model, sampling, seeds = make_gpt(family), SamplingConfig(max_tokens=12), list(range(12))
    together = generate(model, PROMPTS, seeds, -1, sampling, samples=2)
    for row, prompt in enumerate(PROMPTS):
        (alone,) = generate(model, [prompt], seeds[2 * row : 2 * row + 2], -1, sampling, samples=2)
        assert [answer.ids for answer in together[row]] == [answer.ids for answer in alone]
