"""Log-probabilities of given responses, several behind one prompt, against torch's cross entropy one text at a time."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tutelage.model.gpt import GPT
from tutelage.sampling.likelihood import summed_logprobs

PAD, END = 1, 5
PROMPTS = [[17, 260, 33], [8, 120, 77, 201, 61, 9], [44]]
RESPONSES = [
    [[9, 45, 70, END], [END], [9, 45, END], [9, 45, 70, END]],  # with a common prefix, one of them twice
    [[62, 63, END]],
    [[100, 3, 7, 81, 82, 83, END], [200, END]],
]
GROUPS = [[prompt + response for response in responses] for prompt, responses in zip(PROMPTS, RESPONSES)]
STARTS = [len(prompt) for prompt in PROMPTS]


def alone(policy: GPT, prompt: list[int], response: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + response])
    return -F.cross_entropy(policy(ids)[0, len(prompt) - 1 : -1], torch.tensor(response), reduction="sum")


def test_each_response_is_as_likely_as_alone(make_gpt: Any, family: str) -> None:
    policy = make_gpt(family)
    with torch.no_grad():
        sums = summed_logprobs(policy, GROUPS, STARTS, PAD)
        for prompt, responses, row in zip(PROMPTS, RESPONSES, sums, strict=True):
            assert row.tolist() == pytest.approx([alone(policy, prompt, a).item() for a in responses], abs=1e-4)


def test_other_groups_change_nothing(make_gpt: Any) -> None:
    """The order of the groups, a group that occurs twice, and padding to another group's length."""
    policy = make_gpt()
    long = [[17] + [30] * 50 + [END]]
    with torch.no_grad():
        sums = summed_logprobs(policy, GROUPS, STARTS, PAD)
        again = summed_logprobs(policy, [long, *reversed(GROUPS), GROUPS[0]], [1, *reversed(STARTS), STARTS[0]], PAD)
    assert again[3].tolist() == again[4].tolist()
    for first, second in zip(sums, reversed(again[1:4]), strict=True):
        assert first.tolist() == pytest.approx(second.tolist(), abs=1e-5)


def test_half_precision_is_summed_in_full(make_gpt: Any) -> None:
    policy = make_gpt(dtype=torch.bfloat16)
    (row,) = summed_logprobs(policy, GROUPS[:1], STARTS[:1], PAD)
    assert row.dtype == torch.float32 and row.requires_grad
    exact = make_gpt()
    expected = [alone(exact, PROMPTS[0], a).item() for a in RESPONSES[0]]
    assert row.tolist() == pytest.approx(expected, abs=0.5)
