"""Next-token loss and log-probabilities against torch's own cross entropy and hand computations."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.learning import head
from tutelage.learning.head import head_logprobs, next_token_loss, token_logprobs


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 3, 10, 512])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of rows of logits per chunk."""
    monkeypatch.setattr(head, "rows_at_once", lambda weight: request.param)
    return request.param


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("total", [None, 4.0])
def test_next_token_loss_is_cross_entropy(total: float | None) -> None:
    hidden, weight = random(10, 6).requires_grad_(), random(17, 6, seed=1).requires_grad_()
    targets = torch.arange(10) + 3
    ours = next_token_loss(hidden, weight, targets, total)
    theirs = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / (total or 10)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    for mine, expected in zip(
        torch.autograd.grad(3 * ours, [hidden, weight]), torch.autograd.grad(3 * theirs, [hidden, weight]), strict=True
    ):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("rows")
def test_without_gradients_the_loss_is_the_same() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(7, 8, generator=generator), torch.randn(11, 8, generator=generator)
    targets = torch.randint(11, (7,), generator=generator)
    with torch.no_grad():
        loss = next_token_loss(hidden, weight, targets, total=2.0)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / 2.0
    torch.testing.assert_close(loss, expected)


@pytest.mark.usefixtures("rows")
def test_absent_tokens_are_no_part_of_the_vocabulary() -> None:
    """The result is that of a head without their rows, and these rows have no gradient."""
    hidden, weight = random(10, 6).requires_grad_(), random(17, 6, seed=1).requires_grad_()
    absent, targets = torch.tensor([0, 5, 16]), torch.arange(10) + 6
    present = torch.tensor([i for i in range(17) if i not in (0, 5, 16)])
    ours = next_token_loss(hidden, weight, targets, absent=absent)
    theirs = F.cross_entropy(hidden @ weight[present].T, torch.searchsorted(present, targets))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    mine, expected = (torch.autograd.grad(loss, [hidden, weight]) for loss in (ours, theirs))
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    assert not mine[1][absent].any()
    with torch.no_grad():
        without = next_token_loss(hidden, weight, targets, absent=absent)
    torch.testing.assert_close(without, theirs, atol=1e-5, rtol=1e-5)


def test_next_token_loss_in_bf16_keeps_fp32_sums() -> None:
    hidden, weight = random(600, 6).bfloat16().requires_grad_(), random(17, 6, seed=1).requires_grad_()
    targets = torch.arange(600) % 17
    loss = next_token_loss(hidden, weight, targets)
    expected = F.cross_entropy((hidden.float() @ weight.bfloat16().float().T).detach(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-2, rtol=1e-2)
    hidden_grad, weight_grad = torch.autograd.grad(loss, [hidden, weight])
    assert (hidden_grad.dtype, weight_grad.dtype) == (torch.bfloat16, torch.float32)


def test_nothing_to_learn_is_a_loss_of_zero() -> None:
    hidden, weight = torch.zeros(0, 6, requires_grad=True), random(17, 6).requires_grad_()
    loss = next_token_loss(hidden, weight, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0 and not weight.grad.any()


def test_small_batches_give_the_gradient_of_one_large(make_gpt: Any) -> None:
    """Rows of 5, 9 and 3 tokens: losses are divided by the step's total, not averaged per batch."""
    model = make_gpt()
    rows = [torch.randint(300, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 9, 3)]
    total = sum(len(row) - 1 for row in rows)
    for row in rows:
        hidden = model.trunk(row[None])[0, :-1]
        next_token_loss(hidden, model.head_weight, row[1:], total).backward()
    accumulated = model.embedding.weight.grad.clone()
    model.zero_grad()
    logits = torch.cat([model(row[None])[0, :-1] for row in rows])
    F.cross_entropy(logits, torch.cat([row[1:] for row in rows])).backward()
    torch.testing.assert_close(accumulated, model.embedding.weight.grad, atol=1e-5, rtol=1e-5)


def test_completion_and_prompt_add_up(make_gpt: Any) -> None:
    """If only the end of turn counts, the loss is minus its log-probability."""
    model = make_gpt()
    ids = torch.randint(300, (12,), generator=torch.Generator().manual_seed(0))
    hidden, targets = model.trunk(ids[None])[0, :-1], ids[1:]
    completion = torch.arange(11) >= 6
    parts = [next_token_loss(hidden[m], model.head_weight, targets[m], total=11) for m in (completion, ~completion)]
    expected = F.cross_entropy(model(ids[None])[0, :-1], targets)
    torch.testing.assert_close(parts[0] + parts[1], expected, atol=1e-5, rtol=1e-5)
    end = next_token_loss(hidden[-1:], model.head_weight, targets[-1:])
    torch.testing.assert_close(end, -model(ids[None])[0, -2].log_softmax(-1)[ids[-1]], atol=1e-5, rtol=1e-5)


def test_logprobs_are_negative_cross_entropy() -> None:
    logits, ids = 4 * random(3, 5, 17), torch.arange(15).view(3, 5)
    expected = -F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    torch.testing.assert_close(token_logprobs(logits, ids), expected)
    for temperature in (0.5, 1.0, 2.0):
        everything = torch.stack([token_logprobs(logits, torch.full((3, 5), v), temperature) for v in range(17)], -1)
        torch.testing.assert_close(everything.exp().sum(-1), torch.ones(3, 5))
        torch.testing.assert_close(everything, F.log_softmax(logits / temperature, -1))


def test_logprobs_of_bf16_logits_are_computed_in_fp32() -> None:
    logits = (4 * random(3, 17)).bfloat16()
    ids = torch.tensor([1, 2, 3])
    expected = [math.log(math.exp(r[i]) / sum(map(math.exp, r))) for r, i in zip(logits.tolist(), ids.tolist())]
    torch.testing.assert_close(token_logprobs(logits, ids), torch.tensor(expected))


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("learns", [True, False])
def test_head_logprobs_and_their_gradients(learns: bool, temperature: float) -> None:
    """Against autograd through torch's cross entropy, with a different weight for each row."""
    hidden, weight, ids = random(10, 6).requires_grad_(), random(17, 6, seed=1).requires_grad_(learns), torch.arange(10)
    ours = head_logprobs(hidden, weight, ids, temperature)
    theirs = -F.cross_entropy(hidden @ weight.T / temperature, ids, reduction="none")
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    trained = [hidden, weight] if learns else [hidden]
    mine, expected = (torch.autograd.grad(logp @ random(10, seed=2), trained) for logp in (ours, theirs))
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(head_logprobs(hidden, weight, ids, temperature), theirs, atol=1e-5, rtol=1e-5)


def test_a_frozen_heads_gradient_is_as_exact_in_bf16_as_autograds() -> None:
    """Both are compared with fp32. Log-probabilities are the same with and without gradients."""
    hidden, weight, ids = 2 * random(40, 32).bfloat16(), random(300, 32, seed=1).bfloat16(), torch.arange(40)
    scale, gradients = random(40, seed=2), []
    for h, w in ((hidden, weight), (hidden, weight.clone().requires_grad_()), (hidden.float(), weight.float())):
        h = h.clone().requires_grad_()
        found = head_logprobs(h, w, ids)
        assert found.dtype == torch.float32
        gradients.append(torch.autograd.grad(found @ scale, h)[0].float())
        with torch.no_grad():
            assert torch.equal(found, head_logprobs(h, w, ids))
    fused, plain, exact = gradients
    assert (fused - exact).norm() < 1.1 * (plain - exact).norm()


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    hidden, weight = random(4, 6).requires_grad_(), random(17, 6, seed=1)
    found = head_logprobs(hidden, weight, torch.arange(4))
    (gradient,) = torch.autograd.grad(found @ random(4).requires_grad_(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_in_chunks_a_trained_heads_logits_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows at a time: each chunk's logits are computed once forward and once more in the backward pass."""
    sizes: list[int] = []
    linear = F.linear
    monkeypatch.setattr(head.F, "linear", lambda h, w: sizes.append(len(h)) or linear(h, w))
    monkeypatch.setattr(head, "rows_at_once", lambda weight: 2)
    hidden, weight = random(7, 6).requires_grad_(), random(17, 6, seed=1).requires_grad_()
    head_logprobs(hidden, weight, torch.arange(7)).sum().backward()
    assert sizes[:4] == [2, 2, 2, 1] and sorted(sizes[4:]) == [1, 2, 2, 2]


def test_logits_at_once_take_no_more_memory_with_a_larger_vocabulary() -> None:
    assert [head.rows_at_once(torch.empty(size, 1)) for size in (4_096, 49_152, 2**23)] == [1_536, 128, 1]
