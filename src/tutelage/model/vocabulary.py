"""Changes to the embedding's rows: new values for tokens that training has never seen, and a new vocabulary size.

A tied embedding is also the output head. At every step the softmax pushes the rows of tokens that never occur away from
the hidden states. After a while all these rows are long and parallel: in the demo their cosine is 0.999, at two and a
half times the usual norm. Fine-tuning would then start with role markers that the model cannot tell apart, and with an
end of turn whose hidden state is the same for every text.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tutelage.model.gpt import GPT

# Rows with a higher cosine count as untrained. Trained role markers of the demo have at most 0.97.
ALIKE = 0.98


def token_rows(model: GPT) -> int:
    """Number of rows of the head that belong to a token; only these are sampled. A table of logits has no others."""
    return getattr(model, "tokens", len(model.head_weight))


@torch.no_grad()
def redraw_untrained_rows(model: GPT, tokens: Sequence[int], generator: torch.Generator) -> list[int]:
    """Redraw the rows of those `tokens` that are nearly parallel to another's, with the statistics of all other rows.

    Returns the tokens that were redrawn; none if training has seen them all.
    """
    weight = model.embedding.weight
    rows = weight[list(tokens)].float()
    alike = torch.cosine_similarity(rows[:, None], rows[None], dim=-1).fill_diagonal_(0) > ALIKE
    untrained = [token for token, row in zip(tokens, alike.any(1).tolist(), strict=True) if row]
    if untrained:
        others = torch.ones(len(weight), dtype=torch.bool, device=weight.device)  # rows not to be redrawn
        others[untrained] = False
        weight[untrained] = _like(weight[others], len(untrained), generator)
    return untrained


@torch.no_grad()
def resize_vocabulary(model: GPT, rows: int) -> GPT:
    """A copy of the model with `rows` tokens: the last rows are dropped, or new ones added as the mean of the old.

    With the mean (Hewitt 2021) a new token is about as likely as an average one. A small random row has a logit near 0,
    which can take most of the probability if the other logits are negative.
    """
    old = model.embedding.weight
    new = GPT(replace(model.config, vocab_size=rows), model.compute_dtype).to(old.device)
    new.tokens = min(model.tokens, rows)
    kept = min(rows, len(old))
    for name, parameter in new.named_parameters():
        before = model.get_parameter(name)
        if name in ("embedding.weight", "head.weight"):
            parameter[:kept] = before[:kept]
            parameter[kept:] = before.mean(0)
        else:
            parameter.copy_(before)
    return new


def _like(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, C) normal samples with the per-channel mean and standard deviation of `rows`."""
    noise = torch.randn(count, rows.shape[1], generator=generator).to(rows)
    return rows.mean(0) + rows.std(0) * noise
