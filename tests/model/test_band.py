"""GPT-3's banded layers: how far the influence of a token reaches (Brown et al. 2020 do not print the band)."""

from typing import Any

import torch

IDS = torch.tensor([[5, 17, 260, 33, 8, 120, 77, 201, 9, 45, 4, 18]])


def test_a_band_as_wide_as_the_context_is_dense(make_gpt: Any) -> None:
    dense, banded = make_gpt("gpt3", band=0), make_gpt("gpt3", band=64)
    torch.testing.assert_close(dense(IDS), banded(IDS), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(dense(IDS), make_gpt("gpt3", band=3)(IDS), atol=1e-3)


def test_reach_is_the_sum_of_the_bands(make_gpt: Any) -> None:
    """Two banded layers of 3 reach 2 * (3 - 1) tokens back, if the dense layers add nothing."""
    for layers, reach in ((2, 2), (4, 4)):
        model = make_gpt("gpt3", layers=layers)
        for dense in model.blocks[::2]:
            dense.attention.out.weight.data.zero_()
        before = model(IDS)
        edited = IDS.clone()
        edited[0, 3] += 1
        changed = (model(edited) != before).any(-1)[0].tolist()
        assert changed == [3 <= t <= 3 + reach for t in range(12)]


def test_even_layers_stay_dense(make_gpt: Any) -> None:
    model = make_gpt("gpt3", layers=1)
    edited = IDS.clone()
    edited[0, 0] += 1
    assert bool((model(edited) != model(IDS)).any(-1).all())
