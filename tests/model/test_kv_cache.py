"""A forward pass with a cache equals the full one: token by token, in chunks, and after rows were dropped."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.model.gpt import GPT
from tutelage.model.kv_cache import KVCache

IDS = torch.tensor([[5, 17, 260, 33, 8, 120, 77, 201, 9, 45], [61, 2, 2, 290, 14, 15, 16, 99, 100, 3]])


def cache_for(model: GPT, batch: int, size: int) -> KVCache:
    c = model.config
    return KVCache(
        bands=c.bands, batch=batch, kv_heads=c.kv_heads, size=size, head_width=c.head_width,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip


def cached(model: GPT, ids: Tensor, chunks: list[int]) -> Tensor:
    cache = cache_for(model, len(ids), ids.shape[1])
    return torch.cat([model.logits(model.trunk(part, cache=cache)) for part in ids.split(chunks, dim=1)], dim=1)


@pytest.mark.parametrize("chunks", [[1] * 10, [6, 1, 1, 1, 1], [4, 3, 3]], ids=["tokens", "prefill", "chunks"])
def test_cached_is_uncached(make_gpt: Any, family: str, chunks: list[int]) -> None:
    model = make_gpt(family)
    torch.testing.assert_close(cached(model, IDS, chunks), model(IDS), atol=1e-5, rtol=1e-5)


def test_dropping_rows_does_not_change_the_others(make_gpt: Any) -> None:
    model = make_gpt()
    cache = cache_for(model, 2, 10)
    model.trunk(IDS[:, :5], cache=cache)
    cache.keep(torch.tensor([1]))
    rest = model.logits(model.trunk(IDS[1:, 5:6], cache=cache))
    torch.testing.assert_close(rest, model(IDS[1:, :6])[:, 5:], atol=1e-5, rtol=1e-5)


def test_repeated_rows_are_next_to_each_other(make_gpt: Any) -> None:
    model = make_gpt()
    cache = cache_for(model, 2, 10)
    model.trunk(IDS[:, :5], cache=cache)
    cache.repeat(3)
    new = torch.tensor([[7], [8], [9], [10], [11], [12]])
    logits = model.logits(model.trunk(new, cache=cache))
    whole = torch.cat([IDS[:, :5].repeat_interleave(3, 0), new], dim=1)
    torch.testing.assert_close(logits, model(whole)[:, 5:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family, layers", [("gpt3", [False, True] * 2), ("mistral", [True, True])])
def test_a_banded_layer_stores_no_more_than_its_band(make_gpt: Any, family: str, layers: list[bool]) -> None:
    """Tokens further back are never attended to again, so the logits are still those of the whole text."""
    model = make_gpt(family)
    cache = cache_for(model, 2, 10)
    logits = [model.logits(model.trunk(part, cache=cache)) for part in IDS.split([4, 1, 1, 3, 1], dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(IDS), atol=1e-5, rtol=1e-5)
    assert [keys.shape[2] for keys in cache.keys] == [2 if banded else 10 for banded in layers]  # bands of 3
    assert [values.shape for values in cache.values] == [keys.shape for keys in cache.keys]
