"""How long a fine-tuning run goes on: passes over its examples, or a budget of tokens.

    examples, epochs or tokens -> packed rows in training order, a new order for each epoch

By default a run has the whole number of epochs that comes nearest to DEFAULT_TOKENS, from one to MOST_EPOCHS: a small
set is not repeated until the model knows it by heart, and of a large one nothing is left out.
"""

from collections.abc import Sequence

import torch

from tutelage.data.packing import Example, pack_rows
from tutelage.errors import InputError

CHUNK = 512  # windows packed together: enough to fill the rows, few enough to keep their order random
DEFAULT_TOKENS = 500_000
MOST_EPOCHS = 16  # InstructGPT's number (Ouyang et al. 2022, appendix C.1); its held-out loss rises after the first
MANY_EPOCHS = 100
MOST_ROWS = 10_000_000  # their plan takes 2 GB


def default_epochs(held: int) -> int:
    """Epochs of a run over `held` tokens where neither epochs nor tokens are chosen."""
    return min(max(1, round(DEFAULT_TOKENS / held)), MOST_EPOCHS)


def packed_rows(examples: Sequence[Example], length: int, generator: torch.Generator) -> list[list[Example]]:
    """One epoch: shuffle the examples, pack them chunk by chunk, and shuffle the rows of each chunk."""
    rows: list[list[Example]] = []
    order = torch.randperm(len(examples), generator=generator).tolist()
    for at in range(0, len(order), CHUNK):
        chunk = [examples[i] for i in order[at : at + CHUNK]]
        packed = pack_rows([len(e.ids) for e in chunk], length)
        rows += [[chunk[i] for i in packed[r]] for r in torch.randperm(len(packed), generator=generator).tolist()]
    return rows


def rows_of_epochs(
    examples: Sequence[Example], epochs: float, length: int, generator: torch.Generator
) -> list[list[Example]]:
    """The packed rows of so many epochs, at least one row; of the last epoch perhaps only a part."""
    rows: list[list[Example]] = []
    while epochs > 0:
        epoch = packed_rows(examples, length, generator)
        rows += epoch[: max(0 if rows else 1, round(min(epochs, 1) * len(epoch)))]
        epochs -= 1
    return rows


def rows_of_tokens(
    examples: Sequence[Example], tokens: int, batch: int, length: int, generator: torch.Generator
) -> list[list[Example]]:
    """The packed rows of as many epochs as `tokens` takes, cut to whole batches; at least one batch."""
    wanted = max(1, tokens // length // batch) * batch
    if wanted > MOST_ROWS:
        raise InputError(
            f"--tokens {tokens}: fill {wanted:,} rows of {length} tokens in batches of {batch}, and at most "
            f"{MOST_ROWS:,} are planned at once; give fewer"
        )
    rows: list[list[Example]] = []
    while len(rows) < wanted:
        rows += packed_rows(examples, length, generator)
    return rows[:wanted]


def budget_warnings(held: int, epochs: float, steps: int, chosen: bool) -> list[str]:
    """What is odd about a run of so many epochs over `held` tokens; `chosen`: the user has chosen its length."""
    usual = DEFAULT_TOKENS / held
    warnings = []
    if not chosen and usual >= MANY_EPOCHS:
        warnings.append(
            f"{DEFAULT_TOKENS:,} tokens, the usual length, would be {usual:,.0f} epochs of these demonstrations, so "
            f"training stops after {MOST_EPOCHS}; give more demonstrations, or choose --epochs"
        )
    if chosen and epochs >= MANY_EPOCHS:
        warnings.append(
            f"{epochs:,.0f} epochs: the model will learn these demonstrations by heart; give fewer --epochs, or more "
            "demonstrations"
        )
    if steps == 1:
        warnings.append("the whole training is a single step; give more --epochs or a smaller --batch")
    return warnings
