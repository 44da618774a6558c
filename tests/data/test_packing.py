"""Packing: rows by hand, and packed conversations give the same results as when computed alone."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.packing import Example, pack, pack_rows, stream, window, window_count
from tutelage.model.gpt import GPT

PAD = 1


def examples(*lengths: int, seed: int = 0) -> list[Example]:
    random = np.random.default_rng(seed)
    return [Example(random.integers(10, 300, n).tolist(), [bool(b) for b in random.integers(0, 2, n)]) for n in lengths]


def single_loss(model: GPT, example: Example) -> tuple[torch.Tensor, int]:
    """Summed loss of one conversation alone, by F.cross_entropy with ignored labels, and how many tokens it has."""
    ids = torch.tensor([example.ids])
    labels = torch.tensor([i if s else -100 for i, s in zip(example.ids, example.supervised, strict=True)])[1:]
    return F.cross_entropy(model(ids)[0, :-1], labels, ignore_index=-100, reduction="sum"), int((labels >= 0).sum())


def packed_loss(model: GPT, packed: Any) -> torch.Tensor:
    logits = model(packed.ids, packed.positions, packed.mask())[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), packed.ids[:, 1:], reduction="none")
    return losses[packed.supervised[:, 1:]].sum()


def gradients(model: GPT, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("family", ["gpt2", "modern"])  # learned positions detect a wrong restart, rotary ones cannot
def test_packed_equals_alone_in_loss_and_gradient(make_gpt: Any, family: str) -> None:
    """The gradient is the sensitive check: without the mask the loss is off by .006, the gradient by .12."""
    model = make_gpt(family)
    conversations = examples(7, 5, 9, 3)
    packed = pack([[conversations[0], conversations[1]], [conversations[2], conversations[3]]], 16, PAD)
    alone = [single_loss(model, example) for example in conversations]
    expected = torch.stack([loss for loss, _ in alone]).sum()
    actual = packed_loss(model, packed)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(model, actual), gradients(model, expected), atol=1e-4, rtol=1e-4)
    assert int(packed.supervised.sum()) == sum(count for _, count in alone)


def test_packed_conversations_do_not_attend_to_each_other(make_gpt: Any) -> None:
    """Bit for bit."""
    model = make_gpt("gpt2")
    a, b = examples(6, 7)
    other = Example([(i + 1) % 300 for i in a.ids], a.supervised)
    first, second = pack([[a, b]], 16, PAD), pack([[other, b]], 16, PAD)
    left = model(first.ids, first.positions, first.mask())
    right = model(second.ids, second.positions, second.mask())
    assert torch.equal(left[:, 6:13], right[:, 6:13])
    assert not torch.equal(left[:, :6], right[:, :6])


def test_layout_by_hand() -> None:
    packed = pack([[Example([11, 12, 13], [True, False, True]), Example([21, 22], [True, True])]], 7, PAD)
    assert packed.ids.tolist() == [[11, 12, 13, 21, 22, PAD, PAD]]
    assert packed.positions.tolist()[0][:5] == [0, 1, 2, 0, 1]
    assert packed.segments.tolist() == [[0, 0, 0, 1, 1, -1, -1]]
    # The first token of each conversation is never a target: 21 would be predicted from 13, of another conversation.
    assert packed.supervised.tolist() == [[False, False, True, False, True, False, False]]
    mask = packed.mask()[0, 0]
    assert mask[:5, :5].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert mask.any(-1).all()  # padding attends to itself, so that no softmax is empty


@given(lengths=st.lists(st.integers(1, 20), max_size=30))
def test_every_example_is_in_exactly_one_row_that_holds_it(lengths: list[int]) -> None:
    rows = pack_rows(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    # First fit leaves at most one row half empty or more: two such rows would have been one.
    assert sum(sum(lengths[i] for i in row) <= 10 for row in rows) <= 1


def test_an_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="example 1 has 9 tokens, but a row has room for 8"):
        pack_rows([3, 9], 8)


def test_windows_cover_the_stream_and_share_one_token() -> None:
    ids = stream([[5, 6, 7], [], [8, 9]], 0)
    assert ids.tolist() == [5, 6, 7, 0, 0, 8, 9, 0]
    assert window_count(ids, 3) == 2
    assert window(ids, [0, 1], 3).tolist() == [[5, 6, 7, 0], [0, 0, 8, 9]]


@given(total=st.integers(0, 40), length=st.integers(1, 12))
def test_every_token_but_the_first_is_a_target_once(total: int, length: int) -> None:
    ids = np.arange(total, dtype=np.int32)
    count = window_count(ids, length)
    targets = window(ids, range(count), length)[:, 1:].flatten().tolist() if count else []
    assert targets == list(range(1, count * length + 1))
    assert 0 <= total - 1 - count * length < length or count == 0 and total <= length
