"""Rows of tokens that training never saw are found and redrawn; rows are added and dropped; all others stay."""

from typing import Any

import pytest
import torch

from tutelage.learning.head import next_token_loss
from tutelage.learning.optim import adamw
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.vocabulary import redraw_untrained_rows, resize_vocabulary

SHAPE = GPTConfig(vocab_size=48, width=32, layers=1, heads=2, kv_heads=1, head_width=16, hidden=64, context=16)
NEVER = [3, 4, 5]


def trained_without(never: list[int], steps: int = 200) -> GPT:
    """A tied model trained on random tokens, none of which is in `never`."""
    generator = torch.Generator().manual_seed(0)
    model = GPT(SHAPE).initialise(generator)
    optimizer = adamw(model.named_parameters(), lr=1e-2, weight_decay=0.0)
    occurring = torch.tensor([i for i in range(SHAPE.vocab_size) if i not in never])
    for _ in range(steps):
        ids = occurring[torch.randint(len(occurring), (4, 17), generator=generator)]
        next_token_loss(model.trunk(ids[:, :-1]).flatten(0, 1), model.head_weight, ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_tokens_that_training_never_saw_become_distinct_again() -> None:
    model = trained_without(NEVER)
    before = model.embedding.weight.detach().clone()
    assert torch.cosine_similarity(before[3], before[4], dim=0) > 0.98  # the problem that redrawing solves
    assert redraw_untrained_rows(model, [1, 2, *NEVER], torch.Generator().manual_seed(1)) == NEVER
    after = model.embedding.weight.detach()
    others = [i for i in range(SHAPE.vocab_size) if i not in NEVER]
    assert torch.equal(after[others], before[others])
    fresh = torch.nn.functional.normalize(after[NEVER], dim=1)
    assert ((fresh @ fresh.T).fill_diagonal_(0) < 0.9).all()
    typical = before[others].norm(dim=1)
    assert (after[NEVER].norm(dim=1) < 2 * typical.max()).all()


def test_tokens_that_training_saw_stay() -> None:
    model = trained_without([])
    before = model.embedding.weight.detach().clone()
    assert redraw_untrained_rows(model, NEVER, torch.Generator()) == []
    assert torch.equal(model.embedding.weight, before)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_old(make_gpt: Any, tied: bool) -> None:
    old = make_gpt(tied=tied)
    new = resize_vocabulary(old, 305)
    assert new.config.vocab_size == 305
    for matrix, before in ((new.embedding.weight, old.embedding.weight), (new.head_weight, old.head_weight)):
        assert torch.equal(matrix[:300], before)
        torch.testing.assert_close(matrix[300:], before.mean(0).expand(5, -1))
    ids = torch.tensor([[5, 17, 260, 33]])
    torch.testing.assert_close(new(ids)[..., :300], old(ids))
    mean = old(ids).mean(-1, keepdim=True)  # the mean row's logit is the mean logit
    torch.testing.assert_close(new(ids)[..., 300:], mean.expand(-1, -1, 5), atol=1e-5, rtol=1e-5)


def test_dropped_rows_change_no_other_logit(make_gpt: Any) -> None:
    old = make_gpt()
    ids = torch.tensor([[5, 17, 26, 33]])
    torch.testing.assert_close(resize_vocabulary(old, 280)(ids), old(ids)[..., :280])
