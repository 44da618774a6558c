"""Advantages and losses of groups of responses: by hand, by definition in plain Python, and by their properties."""

import math

import pytest
import torch
from torch import Tensor

from tutelage.learning.groups import group_relative, grpo_loss, leave_one_out, reinforce_loss, tied_groups

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, -2.0, 5.0, 0.1]])


def test_leave_one_out_by_hand() -> None:
    assert leave_one_out(REWARDS)[0].tolist() == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    assert leave_one_out(torch.tensor([[3.0, 1.0]])).tolist() == [[2.0, -2.0]]


def test_group_relative_by_hand() -> None:
    """The standard deviation is the population's, 0.5, not the sample's, 0.577. Unscaled is Dr. GRPO."""
    assert group_relative(REWARDS, scaled=True)[0].tolist() == pytest.approx([1, -1, -1, 1], abs=1e-3)
    assert group_relative(REWARDS, scaled=False)[0].tolist() == pytest.approx([0.5, -0.5, -0.5, 0.5])


def test_properties_of_the_advantages() -> None:
    rloo, grpo = leave_one_out(REWARDS), group_relative(REWARDS, scaled=True)
    for advantages in (rloo, grpo):
        torch.testing.assert_close(advantages.sum(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(leave_one_out(REWARDS + 7), rloo, atol=1e-5, rtol=0)
    torch.testing.assert_close(leave_one_out(10 * REWARDS), 10 * rloo)
    torch.testing.assert_close(group_relative(10 * REWARDS + 7, scaled=True), grpo, atol=1e-3, rtol=0)
    deviation = torch.tensor([0.5, torch.tensor([0.3, -2.0, 5.0, 0.1]).std(unbiased=False).item()])[:, None]
    torch.testing.assert_close(rloo, grpo * deviation * 4 / 3, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("reward", [0.0, -1.0, 0.1, 1e4])
def test_equal_rewards_teach_nothing(reward: float) -> None:
    tied = torch.full((2, 5), reward)
    for advantages in (leave_one_out(tied), group_relative(tied, scaled=True)):
        assert advantages.abs().max() < 1e-6 * max(1, abs(reward))
    assert tied_groups(tied) == 1.0
    assert tied_groups(torch.cat([tied, tied + torch.arange(5)])) == 0.5


def ragged() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logprobs, old, ref = (-torch.rand(3, 5, generator=generator) for _ in range(3))
    mask = torch.arange(5) < torch.tensor([[5], [2], [3]])
    return {"logprobs": logprobs, "old_logprobs": old, "ref_logprobs": ref, "mask": mask}


ADVANTAGES, LENGTHS = torch.tensor([0.5, -1.5, 2.0]), (5, 2, 3)


def test_reinforce_by_definition_and_without_padding() -> None:
    given = ragged()
    by_hand = [-a * sum(row[:n]) for a, row, n in zip(ADVANTAGES.tolist(), given["logprobs"].tolist(), LENGTHS)]
    for padding in (0.0, -9.0, math.nan):
        logprobs = given["logprobs"].masked_fill(~given["mask"], padding)
        assert reinforce_loss(logprobs, ADVANTAGES, given["mask"]).item() == pytest.approx(sum(by_hand) / 3)


def grpo_by_definition(given: dict[str, Tensor], clip: float, kl_coef: float, divisor: int | None) -> float:
    """Shao et al. 2024, eq. 3 and 4, in Python floats."""
    total = 0.0
    for i, length in enumerate(LENGTHS):
        tokens = 0.0
        for t in range(length):
            new, old, ref = (given[name][i, t].item() for name in ("logprobs", "old_logprobs", "ref_logprobs"))
            ratio, a = math.exp(new - old), ADVANTAGES[i].item()
            k3 = math.exp(ref - new) - (ref - new) - 1
            tokens += min(ratio * a, max(min(ratio, 1 + clip), 1 - clip) * a) - kl_coef * k3
        total += tokens / (divisor or length)
    return -total / len(LENGTHS)


@pytest.mark.parametrize("divisor", [None, 40])
def test_grpo_by_definition_and_without_padding(divisor: int | None) -> None:
    given = ragged()
    expected = grpo_by_definition(given, 0.2, 0.3, divisor)
    for padding in (0.0, -9.0):
        padded = {k: v if k == "mask" else v.masked_fill(~v.isfinite() | ~given["mask"], padding * (k == "logprobs"))
                  for k, v in given.items()}  # fmt: skip
        loss, _, _ = grpo_loss(advantages=ADVANTAGES, clip=0.2, kl_coef=0.3, divisor=divisor, **padded)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_what_grpo_reports() -> None:
    given = ragged()
    _, clipped, kl = grpo_loss(advantages=ADVANTAGES, clip=0.2, kl_coef=0.3, divisor=None, **given)
    new, old, ref = (given[name][given["mask"]].tolist() for name in ("logprobs", "old_logprobs", "ref_logprobs"))
    assert kl.item() == pytest.approx(sum(math.exp(r - n) - (r - n) - 1 for n, r in zip(new, ref)) / 10)
    signs = torch.tensor([1.0, -1.0, 1.0]).repeat_interleave(torch.tensor(LENGTHS)).tolist()
    held = [math.exp(n - o) > 1.2 if s > 0 else math.exp(n - o) < 0.8 for n, o, s in zip(new, old, signs)]
    assert clipped.item() == pytest.approx(sum(held) / 10) and 0 < sum(held) < 10


def test_the_gradient_of_k3() -> None:
    """beta (1 - pi_ref / pi) per token, divided by the response's length and the number of responses."""
    given = ragged()
    given["logprobs"].requires_grad_()
    loss, _, _ = grpo_loss(advantages=torch.zeros(3), clip=0.2, kl_coef=0.3, divisor=None, **given)
    loss.backward()
    for i, length in enumerate(LENGTHS):
        for t in range(5):
            new, ref = given["logprobs"][i, t].item(), given["ref_logprobs"][i, t].item()
            expected = 0.3 * (1 - math.exp(ref - new)) / length / 3 if t < length else 0.0
            assert given["logprobs"].grad[i, t].item() == pytest.approx(expected, abs=1e-7)


def test_the_expected_gradient_of_k3_is_that_of_the_forward_kl() -> None:
    """On samples of pi the gradient of k3 is that of KL(pi_ref || pi), the cross entropy -sum pi_ref log pi."""
    logits = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    logprobs = logits.log_softmax(0)[:, None]
    weights = logprobs.detach().exp()[:, 0]
    mask = torch.ones(3, 1, dtype=torch.bool)
    losses = [
        grpo_loss(row, row.detach(), ref, torch.zeros(1, dtype=torch.float64), m, clip=0.2, kl_coef=1.0, divisor=1)[0]
        for row, ref, m in zip(logprobs.split(1), reference.log()[:, None].split(1), mask.split(1))
    ]
    (ours,) = torch.autograd.grad((weights * torch.stack(losses)).sum(), logits, retain_graph=True)
    (forward,) = torch.autograd.grad(-(reference * logprobs[:, 0]).sum(), logits)
    torch.testing.assert_close(ours, forward)
