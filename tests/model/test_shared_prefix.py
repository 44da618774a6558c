"""Responses that share a row get the scores that a plain forward pass gives each text by itself."""

import pytest
import torch

from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.shared_prefix import common_prefix, lay_out, score_texts

PAD = 0
GROUPS = [
    [[5, 6, 7, 8, 9], [5, 6, 7, 10], [5, 6, 7, 11, 12, 13, 14]],
    [[5, 6]],
    [[8, 9, 10], [8, 9, 10], [8, 9, 11]],  # the same response twice
    [[4, 4, 4], [4, 4, 4, 4]],  # one is a prefix of the other
    [[1, 2, 3], [3, 2, 1]],  # no common prefix
]


def scorer(**shape: object) -> ScalarGPT:
    config = dict(vocab_size=16, width=32, layers=2, heads=4, kv_heads=2, head_width=8, hidden=48, context=16)
    model = GPT(GPTConfig(**config | shape)).initialise(torch.Generator().manual_seed(3))  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data.mul_(8)  # far from a uniform attention
    return ScalarGPT(model, mean=0.25).initialise(torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    "shape", [{}, {"learned_positions": True, "norm": "layer", "mlp": "gelu"}, {"qk_norm": True}, {"band": 3}]
)
def test_each_text_is_scored_as_if_alone(shape: dict[str, object]) -> None:
    model = scorer(**shape)
    with torch.no_grad():
        scores = score_texts(model, GROUPS, PAD)
        for group, row in zip(GROUPS, scores, strict=True):
            alone = [model(torch.tensor([text]))[0, -1].item() for text in group]
            assert row.tolist() == pytest.approx(alone, abs=1e-4)


def test_the_common_prefix_is_stored_once() -> None:
    rows = lay_out(GROUPS[:1], PAD)
    assert rows.ids.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, *[PAD] * 6]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5, 6, *[0] * 6]]
    assert rows.branches.tolist() == [[0, 0, 0, 1, 1, 2, 3, 3, 3, 3, *[-1] * 6]]
    assert rows.last.tolist() == [[4, 5, 9]]
    sees = rows.mask()[0, 0]
    assert sees[4].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert sees[5].nonzero().flatten().tolist() == [0, 1, 2, 5]
    assert sees[8].nonzero().flatten().tolist() == [0, 1, 2, 6, 7, 8]


def test_every_text_keeps_its_last_token() -> None:
    assert [common_prefix(group) for group in GROUPS] == [3, 1, 2, 2, 0]


def test_a_row_of_fewer_texts_is_read_at_its_own_end() -> None:
    """Missing texts are read at the end of the row. If they were read at 0, the top block could skip no token."""
    rows = lay_out([[[1, 2, 3, 4], [1, 2, 5]], [[1, 2, 3, 6, 7]]], 0)
    assert rows.last.tolist() == [[3, 4], [4, 4]]  # 1 2 | 3 4 | 5, and 1 2 3 6 | 7
