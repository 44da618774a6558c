"""Rows of the embedding whose tokens training has never met.

A tied embedding is also the output head: at every step the softmax pushes each token that never comes away from where
the hidden states are. After a while all such rows are long and point the same way (cosine .999 in the demo, two and a
half times the usual length), so that fine-tuning starts with role markers nobody can tell apart and an end of turn
whose hidden state is the same whatever was said.
"""

from collections.abc import Sequence

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


def _like(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, C): normal, with the mean and the spread of each channel of `rows`."""
    noise = torch.randn(count, rows.shape[1], generator=generator).to(rows)
    return rows.mean(0) + rows.std(0) * noise
