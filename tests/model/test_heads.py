"""The scalar head of reward model and value network: where it is read, and what must not change its score."""

from typing import Any

import torch

from tutelage.model.heads import ScalarGPT

IDS = torch.tensor([[5, 17, 260, 33, 8, 120], [61, 2, 2, 290, 14, 15]])
LAST = torch.tensor([5, 2])


def scorer(make_gpt: Any, mean: float = 0.0) -> ScalarGPT:
    return ScalarGPT(make_gpt(), mean).initialise(torch.Generator().manual_seed(0))


def test_the_score_is_the_head_on_the_last_token_less_the_mean(make_gpt: Any) -> None:
    model = scorer(make_gpt, mean=0.7)
    hidden = model.trunk.trunk(IDS)
    for row, last in enumerate(LAST.tolist()):
        expected = sum((hidden[row, last, c] * model.score.weight[0, c]).item() for c in range(32)) - 0.7
        torch.testing.assert_close(model.at(IDS, LAST)[row].item(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(IDS)[row, last].item(), expected, atol=1e-5, rtol=1e-5)


def test_padding_and_what_follows_change_nothing(make_gpt: Any) -> None:
    model = scorer(make_gpt)
    scores = model.at(IDS, LAST)
    padded = torch.cat([IDS, torch.full((2, 5), 1)], dim=1)
    torch.testing.assert_close(model.at(padded, LAST), scores, atol=1e-6, rtol=1e-6)
    after, before = IDS.clone(), IDS.clone()
    after[1, 3], before[1, 1] = 9, 9
    assert torch.equal(model.at(after, LAST), scores)
    assert model.at(before, LAST)[1] != scores[1]


def test_head_weights_have_the_published_spread(make_gpt: Any) -> None:
    """Stiennon et al. 2020: variance 1 / (C + 1)."""
    model = ScalarGPT(make_gpt(width=1023, heads=1, kv_heads=1, head_width=2, layers=1))
    model.initialise(torch.Generator().manual_seed(0))
    assert abs(model.score.weight.std().item() - 1 / 32) < 0.003
    assert model.score.bias is None  # transformers' classification heads have none


def test_scores_are_fp32_under_bf16_activations(make_gpt: Any) -> None:
    model = ScalarGPT(make_gpt(dtype=torch.bfloat16))
    assert model(IDS).dtype == model.at(IDS, LAST).dtype == torch.float32
