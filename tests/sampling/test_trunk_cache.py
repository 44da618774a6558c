"""The trunk cache that the sampler fills, against the lowest blocks run on each whole text alone."""

import weakref
from typing import Any

import pytest
import torch

from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import Response, generate
from tutelage.sampling.trunk_cache import TrunkCache

PROMPTS = [[5, 17, 260], [33, 8, 120, 77, 201, 9, 45], [61], [2, 2, 290, 14, 15]]
SAMPLING = SamplingConfig(max_tokens=10)


def ids_of(answers: list[list[Response]]) -> list[list[list[int]]]:
    return [[answer.ids for answer in some] for some in answers]


@pytest.mark.parametrize("samples", [1, 3])
def test_it_holds_what_the_lowest_blocks_compute_for_whole_texts(make_gpt: Any, family: str, samples: int) -> None:
    """Prompts of different lengths; responses that end early, leave the batch or are cut, with their last tokens."""
    model, seeds = make_gpt(family), list(range(4 * samples))
    free = generate(model, PROMPTS, seeds, -1, SAMPLING, samples)
    for end in (-1, free[0][0].ids[2], free[3][-1].ids[0]):
        lower = TrunkCache(1, 4 * samples, 17)
        answers = generate(model, PROMPTS, seeds, end, SAMPLING, samples, trunk_cache=lower)
        assert ids_of(answers) == ids_of(generate(model, PROMPTS, seeds, end, SAMPLING, samples))
        texts = [prompt + answer.ids for prompt, some in zip(PROMPTS, answers, strict=True) for answer in some]
        stream = lower.stream(max(map(len, texts)), model.embedding.weight)
        assert (stream.layers, stream.source is model.embedding.weight) == (1, True)
        for row, text in enumerate(texts):
            alone = model.lower(torch.tensor([text]), 1).x[0]
            torch.testing.assert_close(stream.x[row, : len(text)], alone, atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_its_stream(make_gpt: Any) -> None:
    """They could not flow through inference-mode tensors."""
    model, lower = make_gpt(), TrunkCache(1, 1, 13)
    generate(model, PROMPTS[:1], [1], -1, SAMPLING, trunk_cache=lower)
    stream = lower.stream(8, model.embedding.weight)
    model.trunk(torch.zeros(1, 8, dtype=torch.long), stream=stream).sum().backward()
    assert model.blocks[-1].mlp.down.weight.grad is not None and model.embedding.weight.grad is None


def test_the_original_is_freed_when_the_stream_is_taken(make_gpt: Any) -> None:
    model, lower = make_gpt(), TrunkCache(1, 4, 17)
    generate(model, PROMPTS, range(4), -1, SAMPLING, trunk_cache=lower)
    assert lower.x is not None and lower.x.shape == (4, 17, model.config.width)
    kept = weakref.ref(lower.x)
    stream = lower.stream(17, model.embedding.weight)
    assert kept() is None and stream.x.shape == (4, 17, model.config.width)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_several_batches_give_the_same_as_one(make_gpt: Any, size: int, samples: int) -> None:
    """Each batch is as wide as its own prompts."""
    model, seeds = make_gpt(), list(range(4 * samples))
    whole, split = TrunkCache(1, 4 * samples, 17), TrunkCache(1, 4 * samples, 17)
    expected = generate(model, PROMPTS, seeds, 290, SAMPLING, samples, trunk_cache=whole)
    answers = []
    for at in range(0, 4, size):
        some, chance = PROMPTS[at : at + size], seeds[at * samples : (at + size) * samples]
        answers += generate(model, some, chance, 290, SAMPLING, samples, trunk_cache=split)
    assert ids_of(answers) == ids_of(expected)
    one, other = (lower.stream(17, model.embedding.weight).x for lower in (whole, split))
    for row, text in enumerate(len(p) + len(a.ids) for p, some in zip(PROMPTS, expected, strict=True) for a in some):
        assert one[row, :text].abs().sum(1).all()
        torch.testing.assert_close(other[row, :text], one[row, :text], atol=1e-5, rtol=1e-5)
