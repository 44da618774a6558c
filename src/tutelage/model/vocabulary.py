"""Rows of the embedding: those of tokens that training has never met, and those of tokens that come or go.

A tied embedding is also the output head: at every step the softmax pushes each token that never comes away from where
the hidden states are. After a while all such rows are long and point the same way (cosine .999 in the demo, two and a
half times the usual length), so that fine-tuning starts with role markers nobody can tell apart and an end of turn
whose hidden state is the same whatever was said.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tutelage.model.gpt import GPT

ALIKE = 0.98  # cosine of two rows that no training has told apart; trained markers of the demo: at most .97


@torch.no_grad()
def renew_untrained(model: GPT, tokens: Sequence[int], generator: torch.Generator) -> list[int]:
    """Draw anew, like any other row, those of `tokens` whose rows are as good as equal to one another's.

    Returns the tokens that were renewed: none where training has met them.
    """
    weight = model.embedding.weight
    rows = weight[list(tokens)].float()
    alike = torch.cosine_similarity(rows[:, None], rows[None], dim=-1).fill_diagonal_(0) > ALIKE
    untrained = [token for token, row in zip(tokens, alike.any(1).tolist(), strict=True) if row]
    if untrained:
        others = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        others[untrained] = False
        weight[untrained] = _like(weight[others], len(untrained), generator)
    return untrained


@torch.no_grad()
def resized(model: GPT, rows: int) -> GPT:
    """The same model with `rows` tokens: the last ones go, or new ones come as the mean of the old.

    The mean (Hewitt 2021) makes a new token about as likely as an average one; a small random row, whose logit is near
    0 where others are negative, may take most of the probability.
    """
    old = model.embedding.weight
    made = GPT(replace(model.config, vocab_size=rows), model.compute_dtype).to(old.device)
    kept = min(rows, len(old))
    for name, parameter in made.named_parameters():
        before = model.get_parameter(name)
        if name in ("embedding.weight", "head.weight"):
            parameter[:kept] = before[:kept]
            parameter[kept:] = before.mean(0)
        else:
            parameter.copy_(before)
    return made


def _like(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, C): normal, with the mean and the spread of each channel of `rows`."""
    noise = torch.randn(count, rows.shape[1], generator=generator).to(rows)
    return rows.mean(0) + rows.std(0) * noise
