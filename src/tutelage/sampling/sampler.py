"""The sampler: a model and prompts in, responses out. PPO, evaluation, ranking and chat all use it.

    prompts (ids) -> prefill -> one token per row and step -> responses, each ended by end-of-turn or cut at the limit

Prompts of similar length are prefilled together (`prefill.py`), and several responses to one prompt share its prefill.
Rows are left-padded in the KV cache, have positions that ignore the padding, and leave the batch when finished.

Randomness: each response has a seed, from which one uniform number per token is drawn in advance (Philox, a
counter-based generator). `distribution.py` turns the model's logits and that number into a token. A response therefore
does not depend on what else is in the batch. The server's engine (`engine/`) draws the same numbers and gives the same
response for a seed, apart from rounding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.lora import merge_adapters, shallow_copy
from tutelage.model.prepack import prepack
from tutelage.sampling.distribution import SamplingConfig, TokenHistory, draw, filtered_probabilities
from tutelage.sampling.prefill import last_hidden, prefill
from tutelage.sampling.stops import Stopped
from tutelage.sampling.trunk_cache import TrunkCache

MAX_CACHE_NUMBERS = 2**28  # numbers in the KV cache of one batch: 512 MiB in bf16
COMPACT_BELOW = 0.75  # drop finished rows from the batch once fewer than this share of its rows are unfinished


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    ids: list[int]  # up to and including the token that ends it, if one came
    logprobs: list[float]  # of each token under the filtered distribution it was drawn from
    ended: bool  # False: it ended without such a token, at max_tokens or at a stop string


def rows_that_fit(config: GPTConfig, tokens: int, most: int) -> int:
    """How many responses, at most `most`, can be sampled at once if prompt and response take `tokens` tokens."""
    row = 2 * tokens * config.layers * config.kv_heads * config.head_width
    return max(1, min(most, MAX_CACHE_NUMBERS // row))


def inference_copy(model: GPT) -> GPT:
    """A frozen copy in the compute precision with its adapters merged, so that no step casts or runs an adapter.

    Weights that are already frozen in that precision are shared with the model, not copied.
    """
    return for_inference(shallow_copy(model))


def for_inference(model: GPT) -> GPT:
    """Like `inference_copy`, but converts the model in place. Use it when the fp32 weights are no longer needed."""
    frozen = merge_adapters(model.eval().requires_grad_(False)).to(model.compute_dtype)
    prepack(frozen, frozen.head_weight)
    return frozen


def uniforms(seed: int, count: int) -> np.ndarray:
    """(count,) numbers in [0, 1) that decide a response's tokens. They depend on the seed only."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count, dtype=np.float32)


class Decoding:
    """A batch of responses that is being sampled. Rows are the prompts, each repeated `samples` times, in order."""

    def __init__(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        samples: int,
        config: SamplingConfig,
        trunk_cache: TrunkCache | None = None,
    ):
        device = model.embedding.weight.device
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.model, self.config, self.layers = model, config, trunk_cache.layers if trunk_cache else 0
        self.history = TokenHistory(prompts, samples, model.config.vocab_size, device) if config.penalised else None
        self.cache, hidden, residual = prefill(model, prompts, config.max_tokens, self.layers)
        self.cache.repeat(samples)
        self.pads = (self.cache.length - lengths).repeat_interleave(samples)
        self.real = torch.arange(self.cache.length, device=device) >= self.pads[:, None]  # False: padding
        self.hidden = hidden.repeat_interleave(samples, 0)
        if trunk_cache:
            assert residual is not None
            trunk_cache.begin(residual, self.pads, samples)

    def probabilities(self) -> Tensor:
        """(rows, V): the distribution of each row's next token."""
        logits = self.model.logits(self.hidden)
        if self.history:
            logits = self.history.penalise(logits, self.config)
        return filtered_probabilities(logits, self.config)

    def push(self, tokens: Tensor) -> Tensor | None:
        """Append one token to every row. Returns their residual stream (rows, 1, C) if there is a trunk cache."""
        if self.history:
            self.history.add(tokens)
        self.real = torch.cat([self.real, self.real.new_ones(len(tokens), 1)], dim=1)
        positions = self.cache.length - self.pads[:, None]
        mask = self.real[:, None, None] if self.pads.any() else None
        self.hidden, residual = last_hidden(self.model, tokens[:, None], positions, mask, self.cache, self.layers)
        return residual

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        if self.history:
            self.history.keep(rows)
        self.cache.keep(rows)
        self.real, self.pads, self.hidden = self.real[rows], self.pads[rows], self.hidden[rows]


class Transcript:
    """What N responses contain so far."""

    def __init__(self, count: int, ends: Sequence[int], max_tokens: int, device: torch.device):
        self.ends = torch.tensor(ends, device=device)
        self.ids = torch.full((count, max_tokens), ends[0], dtype=torch.long, device=device)
        self.logprobs = torch.zeros(self.ids.shape, device=device)
        self.done = torch.zeros(count, dtype=torch.bool, device=device)
        self.lengths = [max_tokens] * count  # shorter if a stop string came

    def add(self, rows: Tensor, step: int, tokens: Tensor, probabilities: Tensor) -> Tensor:
        """Record one token per row, drawn from (R, V) probabilities. Returns the tokens, with an end in rows that were
        done."""
        self.logprobs[rows, step] = probabilities.gather(1, tokens[:, None]).squeeze(1).log()
        tokens = torch.where(self.done[rows], self.ends[0], tokens)
        self.ids[rows, step] = tokens
        self.done[rows] |= torch.isin(tokens, self.ends)
        return tokens

    def stop(self, rows: Tensor, step: int, stopped: Stopped) -> None:
        """Mark the rows that contain a stop string after this step as done."""
        for row in rows[~self.done[rows]].tolist():
            if stopped(self.ids[row, : step + 1].tolist()):
                self.done[row], self.lengths[row] = True, step + 1

    def responses(self) -> list[Response]:
        rows = zip(self.ids.tolist(), self.logprobs.tolist(), self.lengths, strict=True)
        ends = set(self.ends.tolist())
        return [_response(ids[:length], logprobs, ends) for ids, logprobs, length in rows]


def _response(ids: list[int], logprobs: list[float], ends: set[int]) -> Response:
    length = next((i + 1 for i, token in enumerate(ids) if token in ends), None)
    return Response(ids[:length], logprobs[: length or len(ids)], length is not None)


def _several(end: int | Sequence[int]) -> Sequence[int]:
    return [end] if isinstance(end, int) else end


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    end: int | Sequence[int],
    config: SamplingConfig,
    samples: int = 1,
    stopped: Stopped | None = None,
    trunk_cache: TrunkCache | None = None,
) -> list[list[Response]]:
    """Sample `samples` responses to each prompt; returns them as [prompt][sample].

    `seeds` has one seed per response, prompt by prompt; `end` is the id or ids that end a response. `stopped` is called
    after each token and says whether a stop string has come (`stops.py`). `trunk_cache` stores the output of the lowest
    blocks. Raises ValueError when prompt plus response exceed the model's context.
    """
    longest = max(len(p) for p in prompts) + config.max_tokens
    if longest > model.config.context:
        raise ValueError(f"prompt and response need {longest} tokens, the model's context is {model.config.context}")
    decoding = Decoding(model, prompts, samples, config, trunk_cache)
    device = model.embedding.weight.device
    chance = torch.from_numpy(np.stack([uniforms(seed, config.max_tokens) for seed in seeds])).to(device)
    transcript = Transcript(len(seeds), _several(end), config.max_tokens, device)
    rows = torch.arange(len(seeds), device=device)  # which response each row of the decoding batch belongs to
    for step in range(config.max_tokens):
        probabilities = decoding.probabilities()
        tokens = transcript.add(rows, step, draw(probabilities, chance[rows, step]), probabilities)
        if stopped:
            transcript.stop(rows, step, stopped)
        if trunk_cache:  # before the loop may end, because the cache also needs the last tokens
            residual = decoding.push(tokens)
            assert residual is not None
            trunk_cache.add(rows, step, residual)
        unfinished = (~transcript.done[rows]).nonzero().squeeze(1)
        if len(unfinished) == 0 or step + 1 == config.max_tokens:
            break
        if len(unfinished) < COMPACT_BELOW * len(rows):
            decoding.keep(unfinished)
            rows, tokens = rows[unfinished], tokens[unfinished]
        if not trunk_cache:
            decoding.push(tokens)
    responses = transcript.responses()
    return [responses[i : i + samples] for i in range(0, len(responses), samples)]


@torch.inference_mode()
def stream(
    model: GPT, prompt: Sequence[int], seed: int, end: int | Sequence[int], config: SamplingConfig
) -> Iterator[int]:
    """Yield the tokens of one response as they are sampled, without the one that ends it."""
    decoding = Decoding(model, [prompt], 1, config)
    for number in uniforms(seed, config.max_tokens):
        token = draw(decoding.probabilities(), torch.tensor([number], device=decoding.hidden.device))
        if token.item() in _several(end):
            return
        yield int(token.item())
        decoding.push(token)
