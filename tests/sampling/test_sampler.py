"""The sampler: filters at known points, draws by chi-square, and batches against one response at a time."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tutelage.errors import InputError
from tutelage.model.gpt import GPT
from tutelage.sampling import distribution
from tutelage.sampling.distribution import SamplingConfig, TokenHistory, draw, filtered_probabilities, nucleus
from tutelage.sampling.sampler import Response, generate, inference_copy, stream, uniforms
from tutelage.sampling.stops import cut, stop_at

LOGITS = torch.tensor([[0.5, 0.3, 0.2]]).log()
PROMPTS = [[5, 17, 260], [33, 8, 120, 77, 201, 9, 45], [61], [2, 2, 290, 14, 15]]
SEEDS = [11, 12, 13, 14]
NEVER = 10**6  # no token has this id, so the end-of-turn never comes


def after(**filters: Any) -> list[float]:
    return filtered_probabilities(LOGITS, SamplingConfig(max_tokens=1, **filters))[0].tolist()


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.5, [0.657895, 0.236842, 0.105263]),
        (0.7, [0.570736, 0.275111, 0.154152]),
        (1.0, [0.5, 0.3, 0.2]),
        (2.0, [0.415446, 0.321803, 0.262751]),
        (0.0, [1.0, 0.0, 0.0]),
        (1e-4, [1.0, 0.0, 0.0]),
        (1e-40, [1.0, 0.0, 0.0]),  # fp32 cannot divide by it
    ],
)
def test_temperature(temperature: float, expected: list[float]) -> None:
    assert after(temperature=temperature) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (dict(top_p=0.49), [1, 0, 0]),  # the first token alone crosses .49
        (dict(top_p=0.6), [0.625, 0.375, 0]),  # the token that crosses p is kept
        (dict(top_p=0.81), [0.5, 0.3, 0.2]),
        (dict(top_p=0.0), [1, 0, 0]),
        (dict(top_k=2), [0.625, 0.375, 0]),
        (dict(top_k=1), [1, 0, 0]),
        (dict(top_k=3), [0.5, 0.3, 0.2]),
        (dict(top_k=9), [0.5, 0.3, 0.2]),
        (dict(top_k=2, top_p=0.6), [1, 0, 0]),  # top-p runs after top-k, where .625 has crossed .6 already
        (dict(temperature=0.5, top_p=0.6), [1, 0, 0]),  # and after the temperature, which makes .657895
        (dict(temperature=2.0, top_p=0.7), [0.415446 / 0.737249, 0.321803 / 0.737249, 0]),
    ],
)
def test_filters_and_their_order(filters: dict[str, Any], expected: list[float]) -> None:
    assert after(**filters) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("candidates", [(), (3,), (2, 6, 17)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.31, 0.61, 0.91, 0.999])
def test_the_nucleus_is_the_same_however_few_tokens_are_tried_first(
    monkeypatch: pytest.MonkeyPatch, candidates: tuple[int, ...], p: float
) -> None:
    """Against Python's stable sort of all tokens. Many tokens are exactly as likely as others, as in bf16."""
    monkeypatch.setattr(distribution, "CANDIDATES", candidates)
    steps = torch.randint(-2, 3, (30, 20), generator=torch.Generator().manual_seed(5)) * 0.75
    probabilities = torch.cat([steps, torch.zeros(2, 20), steps * 9]).softmax(-1)
    for row, found in zip(probabilities.tolist(), nucleus(probabilities, p).tolist(), strict=True):
        expected, mass = [0.0] * len(row), 0.0
        for token in sorted(range(len(row)), key=lambda token: -row[token]):
            if mass == 0 or mass < p - 1e-6:
                expected[token] = row[token]
            mass += row[token]
        assert found == expected


def test_a_bias_adds_to_single_logits() -> None:
    biased = after(logit_bias=((2, 100.0),))
    assert biased == pytest.approx([0, 0, 1], abs=1e-6)
    ratio = math.exp(1.5)
    expected = [0.5 / (0.7 + 0.3 * ratio), 0.3 * ratio / (0.7 + 0.3 * ratio), 0.2 / (0.7 + 0.3 * ratio)]
    assert after(logit_bias=((1, 1.0), (1, 0.5))) == pytest.approx(expected, abs=1e-6)
    assert after(logit_bias=((0, -100.0),), temperature=0) == [0, 1, 0]


@pytest.mark.parametrize(
    "how",
    [
        dict(min_p=0.2), dict(min_p=0.05, temperature=2.0), dict(top_k=20, min_p=0.3), dict(top_p=0.7, min_p=0.2),
        dict(repetition_penalty=1.3), dict(repetition_penalty=0.7, temperature=0.8, top_p=0.9),
        dict(temperature=0.6, top_k=7, top_p=0.8, min_p=0.1, repetition_penalty=1.5),
    ],
    ids=str,
)  # fmt: skip
def test_the_filters_are_transformers(how: dict[str, Any]) -> None:
    """transformers' filters, in the order of its `generate`: penalty, temperature, top-k, top-p, min-p."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(4, 50, generator=generator)
    prompts = [[1, 2, 3], [4, 4, 4], [5], [6, 7]]
    written = torch.randint(50, (4, 6), generator=generator)
    history = TokenHistory(prompts, 1, 50, torch.device("cpu"))
    for tokens in written.T:
        history.add(tokens)
    config = SamplingConfig(max_tokens=1, **how)
    ours = filtered_probabilities(history.penalise(logits, config), config)
    theirs = []
    for row, prompt in enumerate(prompts):
        ids, scores = torch.tensor([[*prompt, *written[row].tolist()]]), logits[row : row + 1].clone()
        chain = [
            transformers.RepetitionPenaltyLogitsProcessor(float(how.get("repetition_penalty", 1.0))),
            transformers.TemperatureLogitsWarper(float(how.get("temperature", 1.0))),
            transformers.TopKLogitsWarper(how.get("top_k", 50)),
            transformers.TopPLogitsWarper(how.get("top_p", 1.0)),
            *([transformers.MinPLogitsWarper(how["min_p"])] if "min_p" in how else []),
        ]
        for step in chain:
            scores = step(ids, scores)
        theirs.append(scores.softmax(-1))
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-6, rtol=1e-5)


def test_frequency_and_presence_by_hand() -> None:
    """OpenAI's formula: logit - count * frequency - [count > 0] * presence; the prompt does not count."""
    history = TokenHistory([[0, 1]], 1, 4, torch.device("cpu"))
    for token in (1, 2, 2):
        history.add(torch.tensor([token]))
    config = SamplingConfig(max_tokens=1, frequency_penalty=0.5, presence_penalty=0.25)
    assert history.penalise(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), config)[0].tolist() == [1.0, 0.25, -0.25, 1.0]


def test_penalties_count_each_row_apart_in_a_batch(make_gpt: Any) -> None:
    """Also after rows have left the batch; `stream` gives the same."""
    model, how = make_gpt(), dict(repetition_penalty=1.4, frequency_penalty=0.6, presence_penalty=0.3, max_tokens=10)
    free = sampled(model, PROMPTS, SEEDS, max_tokens=10)
    end = free[0].ids[2]
    together = sampled(model, PROMPTS, SEEDS, end, **how)
    for prompt, seed, answer in zip(PROMPTS, SEEDS, together, strict=True):
        (alone,) = sampled(model, [prompt], [seed], end, **how)
        assert (alone.ids, alone.ended) == (answer.ids, answer.ended)
        assert alone.logprobs == pytest.approx(answer.logprobs, abs=1e-4)
        written = answer.ids[:-1] if answer.ended else answer.ids
        assert list(stream(model, prompt, seed, end, SamplingConfig(**how))) == written
    assert [a.ids for a in sampled(model, PROMPTS, SEEDS, **how)] != [a.ids for a in free]


def test_an_answer_stops_at_a_string(make_gpt: Any, tokenizer: Any) -> None:
    """As soon as its text contains it, whichever tokens it spans; the other responses continue."""
    model = make_gpt()
    free, end = sampled(model, PROMPTS, SEEDS, tokenizer.end_of_turn_id, max_tokens=30), tokenizer.end_of_turn_id
    texts = [tokenizer.decode(answer.ids) for answer in free]
    string = texts[1][5:8]
    config = SamplingConfig(max_tokens=30)
    stopped = generate(model, PROMPTS, SEEDS, end, config, stopped=stop_at([string, "never said"], tokenizer.decode))
    for whole, text, (answer,) in zip(free, texts, stopped, strict=True):
        said = tokenizer.decode(answer.ids)
        assert cut(said, [string]) == cut(text, [string])
        assert (string in said) == (string in text)
        if string in text:
            assert not answer.ended and string not in tokenizer.decode(answer.ids[:-1])
        else:
            assert answer.ids == whole.ids
    assert len(stopped[1][0].ids) < len(free[1].ids)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (dict(temperature=-1), "temperature -1: must be at least 0"),
        (dict(top_p=1.5), "top_p 1.5: must be between 0 and 1"),
        (dict(min_p=-0.1), "min_p -0.1: must be between 0 and 1"),
        (dict(repetition_penalty=0), "repetition_penalty 0: must be at least 1e-06"),
    ],
)
def test_values_out_of_bounds_are_refused(wrong: dict[str, float], line: str) -> None:
    with pytest.raises(InputError, match=line):
        SamplingConfig(max_tokens=1, **wrong)  # type: ignore[arg-type]


def test_filters_treat_rows_apart() -> None:
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    kept = filtered_probabilities(rows, SamplingConfig(max_tokens=1, top_p=0.6))
    assert kept[0].tolist() == pytest.approx([0.625, 0.375, 0]) and kept[1].tolist() == pytest.approx([0, 0, 1])


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return ((counts - expected).square() / expected).sum().item()


def test_draws_follow_the_distribution() -> None:
    """1e5 draws; 13.8 is passed once in a thousand with two degrees of freedom."""
    chance = torch.from_numpy(uniforms(7, 100_000))
    tokens = draw(torch.tensor([[0.5, 0.3, 0.2]]).expand(100_000, 3), chance)
    assert chi_square(tokens.bincount(minlength=3), 100_000 * torch.tensor([0.5, 0.3, 0.2])) < 13.8


def test_chance_is_uniform_within_and_across_seeds() -> None:
    """27.9 is passed once in a thousand with nine degrees of freedom."""
    for numbers in (uniforms(3, 20_000), [uniforms(seed, 1)[0] for seed in range(4_000)]):
        x = torch.tensor(numbers)
        assert (x >= 0).all() and (x < 1).all()
        assert chi_square((x * 10).long().bincount(minlength=10), torch.full((10,), len(x) / 10)) < 27.9
    assert (uniforms(3, 5) == uniforms(3, 5)).all() and (uniforms(3, 5) != uniforms(4, 5)).any()


def test_a_token_without_mass_is_never_drawn() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    for number, token in ((0.0, 1), (0.499, 1), (0.5, 3), (1 - 2**-24, 3)):
        assert draw(probabilities, torch.tensor([number])).item() == token
    nearly_one = torch.tensor([[1 / 3, 1 / 3, 1 / 3 - 1e-6, 0.0]])  # rounding left less than 1
    assert draw(nearly_one, torch.tensor([1 - 2**-24])).item() == 2


def naive(model: GPT, prompt: Sequence[int], seed: int, length: int, temperature: float = 1.0) -> list[int]:
    """No cache and no batch: the whole text again for each token, and the draw in plain Python."""
    ids = list(prompt)
    for number in uniforms(seed, length).tolist():
        logits = model(torch.tensor([ids]))[0, -1].tolist()
        if temperature == 0:
            ids.append(max(range(len(logits)), key=logits.__getitem__))
            continue
        weights = [math.exp(z / temperature) for z in logits]
        number, token = number * sum(weights), 0
        while number >= weights[token]:
            number, token = number - weights[token], token + 1
        ids.append(token)
    return ids[len(prompt) :]


def sampled(
    model: GPT, prompts: Any, seeds: list[int], end: int | list[int] = NEVER, samples: int = 1, **how: Any
) -> list[Response]:
    config = SamplingConfig(**(dict(max_tokens=8) | how))
    return [answer for answers in generate(model, prompts, seeds, end, config, samples) for answer in answers]


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_ragged_batch_writes_what_each_prompt_alone_would(make_gpt: Any, family: str, temperature: float) -> None:
    """Caching and left padding change nothing, and only the seed matters, not the rest of the batch."""
    model = make_gpt(family)
    answers = sampled(model, PROMPTS, SEEDS, temperature=temperature)
    with torch.no_grad():
        assert [a.ids for a in answers] == [naive(model, p, s, 8, temperature) for p, s in zip(PROMPTS, SEEDS)]
    assert not any(a.ended for a in answers)


def test_logprobs_are_those_of_the_distribution_drawn_from(make_gpt: Any) -> None:
    model = make_gpt("gpt2", vocab_size=12)
    prompts, temperature = [[5, 7], [3, 8, 1, 10]], 0.7
    free = sampled(model, prompts, [1, 2], temperature=temperature)
    cut = sampled(model, prompts, [1, 2], temperature=temperature, top_k=2)
    for row, prompt in enumerate(prompts):
        for answer, k in ((free[row], 12), (cut[row], 2)):
            logits = model(torch.tensor([prompt + answer.ids]))[0, len(prompt) - 1 : -1] / temperature
            expected = [z[t].item() - z.topk(k).values.logsumexp(0).item() for z, t in zip(logits, answer.ids)]
            assert answer.logprobs == pytest.approx(expected, abs=1e-5)


def test_samples_of_one_prompt_are_answers_like_any_other(make_gpt: Any) -> None:
    model = make_gpt("gpt2")
    grouped = sampled(model, PROMPTS[:2], SEEDS, samples=2)
    alone = sampled(model, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], SEEDS)
    assert [a.ids for a in grouped] == [a.ids for a in alone]
    assert grouped[0].ids != grouped[1].ids
    assert [len(g) for g in generate(model, PROMPTS[:2], SEEDS, NEVER, SamplingConfig(max_tokens=2), 2)] == [2, 2]


def test_the_end_of_turn_only_cuts(make_gpt: Any, family: str) -> None:
    """Responses that end early leave the batch; the others are unchanged."""
    model, seeds = make_gpt(family, vocab_size=12), list(range(16))
    prompts = [[i % 12, *range(i % 5)] for i in range(16)]
    endless = [a.ids for a in sampled(model, prompts, seeds, max_tokens=30)]
    for end in (3, 7):
        expected = [(ids[: ids.index(end) + 1], True) if end in ids else (ids, False) for ids in endless]
        answers = sampled(model, prompts, seeds, end, max_tokens=30)
        assert [(a.ids, a.ended) for a in answers] == expected
        assert all(len(a.logprobs) == len(a.ids) for a in answers)
        assert len({len(a.ids) for a in answers}) > 3  # otherwise the test would show little


def test_several_tokens_may_end_a_response(make_gpt: Any) -> None:
    model, seeds = make_gpt(vocab_size=12), list(range(16))
    prompts = [[i % 12, *range(i % 5)] for i in range(16)]
    endless = [a.ids for a in sampled(model, prompts, seeds, max_tokens=30)]
    cuts = [min((ids.index(end) for end in (3, 7) if end in ids), default=None) for ids in endless]
    expected = [(ids if cut is None else ids[: cut + 1], cut is not None) for ids, cut in zip(endless, cuts)]
    assert {ids[-1] for ids, ended in expected if ended} == {3, 7}
    answers = sampled(model, prompts, seeds, [7, 3], max_tokens=30)
    assert [(a.ids, a.ended) for a in answers] == expected
    config = SamplingConfig(max_tokens=30)
    for prompt, seed, ids, end in zip(prompts, seeds, endless, cuts):
        assert list(stream(model, prompt, seed, [7, 3], config)) == ids[:end]


def test_an_answer_may_end_on_its_last_token(make_gpt: Any) -> None:
    model = make_gpt()
    (answer,) = sampled(model, PROMPTS[:1], SEEDS[:1], max_tokens=3)
    (ended,) = sampled(model, PROMPTS[:1], SEEDS[:1], end=answer.ids[2], max_tokens=3)
    assert (ended.ids, ended.ended) == (answer.ids, True)


def test_a_stream_is_the_same_answer_without_its_end(make_gpt: Any) -> None:
    model, config = make_gpt(), SamplingConfig(max_tokens=8, top_p=0.9)
    (answer,) = sampled(model, PROMPTS[1:2], SEEDS[1:2], top_p=0.9)
    assert list(stream(model, PROMPTS[1], SEEDS[1], NEVER, config)) == answer.ids
    end = answer.ids[4]
    assert list(stream(model, PROMPTS[1], SEEDS[1], end, config)) == answer.ids[: answer.ids.index(end)]


def test_the_context_is_a_limit(make_gpt: Any) -> None:
    model = make_gpt("gpt2", context=10)
    assert len(sampled(model, [[1, 2, 3]], [0], max_tokens=7)[0].ids) == 7
    with pytest.raises(ValueError, match="11 tokens, the model's context is 10"):
        sampled(model, [[1], [1, 2, 3]], [0, 0], max_tokens=8)


def test_an_inference_copy_is_frozen_and_separate(make_gpt: Any) -> None:
    model = make_gpt(dtype=torch.bfloat16)
    frozen = inference_copy(model)
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in frozen.parameters())
    ids = torch.tensor([PROMPTS[1]])
    before = frozen(ids)
    assert torch.equal(before, model(ids))  # casting once and casting each time are the same numbers
    model.embedding.weight.data.zero_()
    assert torch.equal(frozen(ids), before)
