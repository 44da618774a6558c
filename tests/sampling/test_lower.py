"""What the sampler keeps of the lowest blocks, against these blocks run on each whole text alone."""

from typing import Any

import pytest
import torch

from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.lower import Lower
from tutelage.sampling.sampler import Answer, generate

PROMPTS = [[5, 17, 260], [33, 8, 120, 77, 201, 9, 45], [61], [2, 2, 290, 14, 15]]
SAMPLING = SamplingConfig(max_tokens=10)


def ids_of(answers: list[list[Answer]]) -> list[list[list[int]]]:
    return [[answer.ids for answer in some] for some in answers]


@pytest.mark.parametrize("samples", [1, 3])
def test_it_is_what_the_lowest_blocks_make_of_whole_texts(make_gpt: Any, family: str, samples: int) -> None:
    """Prompts of different lengths; answers that end early, leave the batch, or are cut: their last tokens, too."""
    model, seeds = make_gpt(family), list(range(4 * samples))
    free = generate(model, PROMPTS, seeds, -1, SAMPLING, samples)
    for end in (-1, free[0][0].ids[2], free[3][-1].ids[0]):
        lower = Lower(1)
        answers = generate(model, PROMPTS, seeds, end, SAMPLING, samples, lower=lower)
        assert ids_of(answers) == ids_of(generate(model, PROMPTS, seeds, end, SAMPLING, samples))
        texts = [prompt + answer.ids for prompt, some in zip(PROMPTS, answers, strict=True) for answer in some]
        stream = lower.stream(max(map(len, texts)), model.embedding.weight)
        assert (stream.layers, stream.source is model.embedding.weight) == (1, True)
        for row, text in enumerate(texts):
            alone = model.lower(torch.tensor([text]), 1).x[0]
            torch.testing.assert_close(stream.x[row, : len(text)], alone, atol=1e-5, rtol=1e-5)


def test_it_can_be_learnt_through(make_gpt: Any) -> None:
    """What is made in inference mode can not."""
    model, lower = make_gpt(), Lower(1)
    generate(model, PROMPTS[:1], [1], -1, SAMPLING, lower=lower)
    stream = lower.stream(8, model.embedding.weight)
    model.trunk(torch.zeros(1, 8, dtype=torch.long), stream=stream).sum().backward()
    assert model.blocks[-1].mlp.down.weight.grad is not None and model.embedding.weight.grad is None
