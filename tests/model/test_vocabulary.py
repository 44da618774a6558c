"""Rows that training never met are found and drawn anew; all others stay bit for bit."""

import torch

from tutelage.learning.losses import next_token_loss
from tutelage.learning.optim import adamw
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.vocabulary import renew_untrained

SHAPE = GPTConfig(vocab_size=48, width=32, layers=1, heads=2, kv_heads=1, head_width=16, hidden=64, context=16)
NEVER = [3, 4, 5]


def trained_without(never: list[int], steps: int = 200) -> GPT:
    """A tied model trained on random tokens, none of which is in `never`."""
    generator = torch.Generator().manual_seed(0)
    model = GPT(SHAPE).initialise(generator)
    optimizer = adamw(model.named_parameters(), lr=1e-2, weight_decay=0.0)
    seen = torch.tensor([i for i in range(SHAPE.vocab_size) if i not in never])
    for _ in range(steps):
        ids = seen[torch.randint(len(seen), (4, 17), generator=generator)]
        next_token_loss(model.trunk(ids[:, :-1]).flatten(0, 1), model.head_weight, ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_tokens_that_training_never_met_are_told_apart_again() -> None:
    model = trained_without(NEVER)
    before = model.embedding.weight.detach().clone()
    assert torch.cosine_similarity(before[3], before[4], dim=0) > 0.98  # the reason for all this
    assert renew_untrained(model, [1, 2, *NEVER], torch.Generator().manual_seed(1)) == NEVER
    after = model.embedding.weight.detach()
    others = [i for i in range(SHAPE.vocab_size) if i not in NEVER]
    assert torch.equal(after[others], before[others])
    fresh = torch.nn.functional.normalize(after[NEVER], dim=1)
    assert ((fresh @ fresh.T).fill_diagonal_(0) < 0.9).all()
    typical = before[others].norm(dim=1)
    assert (after[NEVER].norm(dim=1) < 2 * typical.max()).all()


def test_tokens_that_training_met_stay() -> None:
    model = trained_without([])
    before = model.embedding.weight.detach().clone()
    assert renew_untrained(model, NEVER, torch.Generator()) == []
    assert torch.equal(model.embedding.weight, before)
