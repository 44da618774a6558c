"""A model and prompts in, answers out: the one sampler of PPO, evaluation, ranking and chat.

    prompts (ids) -> prefill -> one token per row and step -> answers that end at end-of-turn, or are cut at the limit

Prompts of like length are read together (`prefill.py`). In the cache they are left-padded, each row keeps its own
positions, and finished rows leave the batch. Several answers to one prompt share its prefill. Chance: every answer has
a seed, from which one uniform number per token is drawn before the first step (Philox, counter-based); the token is
where that number falls in the cumulative distribution. So an answer does not depend on what else is in the batch. The
server's engine (`engine.py`) draws from the same numbers: the same answer for a seed, rounding aside.
How a distribution becomes a token is in `distribution.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.lora import merge_adapters, sharing
from tutelage.model.prepack import prepack
from tutelage.sampling.distribution import SamplingConfig, Written, draw, filtered_probabilities
from tutelage.sampling.prefill import last_hidden, prefill
from tutelage.sampling.stops import Stopped
from tutelage.sampling.trunk_cache import TrunkCache

CACHE_AT_MOST = 2**28  # numbers of keys and values that a batch should hold: 512 MiB in bf16
KEEP_WHEN_ALIVE = 0.75  # compact the batch when fewer of its rows than this are still being written


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    ids: list[int]  # up to and including end-of-turn, if it came
    logprobs: list[float]  # of each token under the filtered distribution it was drawn from
    ended: bool  # False: cut at max_tokens


def rows_that_fit(config: GPTConfig, tokens: int, most: int) -> int:
    """How many answers to write at once, at most `most`, when prompt and answer take so many tokens."""
    row = 2 * tokens * config.layers * config.kv_heads * config.head_width
    return max(1, min(most, CACHE_AT_MOST // row))


def inference_copy(model: GPT) -> GPT:
    """A frozen copy in the compute precision, its adapters merged: no cast and no detour per step.

    What the model itself keeps frozen in that precision is shared with it, not copied.
    """
    return for_inference(sharing(model))


def for_inference(model: GPT) -> GPT:
    """The same without a copy: the model itself, for whoever needs its fp32 weights no more."""
    frozen = merge_adapters(model.eval().requires_grad_(False)).to(model.compute_dtype)
    prepack(frozen, frozen.head_weight)
    return frozen


def uniforms(seed: int, count: int) -> np.ndarray:
    """The numbers of one answer: the same for a seed wherever and whenever it is drawn."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count, dtype=np.float32)


class Decoding:
    """A batch of answers being written. Rows are the prompts, each repeated `samples` times, in order."""

    def __init__(
        self, model: GPT, prompts: Sequence[Sequence[int]], samples: int, config: SamplingConfig,
        lower: TrunkCache | None = None,
    ):  # fmt: skip
        device = model.embedding.weight.device
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.model, self.config, self.layers = model, config, lower.layers if lower else 0
        self.said = Written(prompts, samples, model.config.vocab_size, device) if config.penalised else None
        self.cache, hidden, low = prefill(model, prompts, config.max_tokens, self.layers)
        self.cache.repeat(samples)
        self.pads = (self.cache.length - lengths).repeat_interleave(samples)
        self.real = torch.arange(self.cache.length, device=device) >= self.pads[:, None]
        self.hidden = hidden.repeat_interleave(samples, 0)
        if lower:
            assert low is not None
            lower.begin(low, self.pads, samples)

    def probabilities(self) -> Tensor:
        """(rows, V): what may come next."""
        logits = self.model.logits(self.hidden)
        return filtered_probabilities(self.said.penalise(logits, self.config) if self.said else logits, self.config)

    def push(self, tokens: Tensor) -> Tensor | None:
        """Append one token to every row. Returns (rows, 1, C) as it leaves the lowest blocks, if that is wanted."""
        if self.said:
            self.said.add(tokens)
        self.real = torch.cat([self.real, self.real.new_ones(len(tokens), 1)], dim=1)
        positions = self.cache.length - self.pads[:, None]
        mask = self.real[:, None, None] if self.pads.any() else None
        self.hidden, low = last_hidden(self.model, tokens[:, None], positions, mask, self.cache, self.layers)
        return low

    def keep(self, rows: Tensor) -> None:
        """Drop every row but these."""
        if self.said:
            self.said.keep(rows)
        self.cache.keep(rows)
        self.real, self.pads, self.hidden = self.real[rows], self.pads[rows], self.hidden[rows]


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    end: int,
    config: SamplingConfig,
    samples: int = 1,
    stopped: Stopped | None = None,
    lower: TrunkCache | None = None,
) -> list[list[Response]]:
    """`samples` answers to each prompt: [prompt][sample]. `seeds` has one per answer, prompt by prompt.

    `end` is the end-of-turn id; `stopped` is asked after each token whether an answer is over (`stops.py`); `lower`
    keeps what leaves the lowest blocks.
    Raises ValueError when prompt and answer together exceed the model's context.
    """
    longest = max(len(p) for p in prompts) + config.max_tokens
    if longest > model.config.context:
        raise ValueError(f"prompt and answer need {longest} tokens, the model's context is {model.config.context}")
    decoding = Decoding(model, prompts, samples, config, lower)
    device = model.embedding.weight.device
    chance = torch.from_numpy(np.stack([uniforms(seed, config.max_tokens) for seed in seeds])).to(device)
    written = torch.full((len(seeds), config.max_tokens), end, dtype=torch.long, device=device)
    logprobs = torch.zeros(written.shape, device=device)
    alive = torch.arange(len(seeds), device=device)  # which answer each row of the decoding batch writes
    done = torch.zeros(len(seeds), dtype=torch.bool, device=device)
    lengths = [config.max_tokens] * len(seeds)  # where a stop string came, the rest was never written
    for step in range(config.max_tokens):
        probabilities = decoding.probabilities()
        tokens = draw(probabilities, chance[alive, step])
        logprobs[alive, step] = probabilities.gather(1, tokens[:, None]).squeeze(1).log()
        tokens = torch.where(done[alive], end, tokens)
        written[alive, step] = tokens
        done[alive] |= tokens == end
        if stopped:
            for row in alive[~done[alive]].tolist():
                if stopped(written[row, : step + 1].tolist()):
                    done[row], lengths[row] = True, step + 1
        if lower:  # the last tokens, too
            low = decoding.push(tokens)
            assert low is not None
            lower.add(alive, step, low)
        open_rows = (~done[alive]).nonzero().squeeze(1)
        if len(open_rows) == 0 or step + 1 == config.max_tokens:
            break
        if len(open_rows) < KEEP_WHEN_ALIVE * len(alive):
            decoding.keep(open_rows)
            alive, tokens = alive[open_rows], tokens[open_rows]
        if not lower:
            decoding.push(tokens)
    rows = zip(written.tolist(), logprobs.tolist(), lengths, strict=True)
    answers = [_response(ids[:length], scores, end) for ids, scores, length in rows]
    return [answers[i : i + samples] for i in range(0, len(answers), samples)]


def _response(ids: list[int], logprobs: list[float], end: int) -> Response:
    length = ids.index(end) + 1 if end in ids else len(ids)
    return Response(ids[:length], logprobs[:length], end in ids)


@torch.inference_mode()
def stream(model: GPT, prompt: Sequence[int], seed: int, end: int, config: SamplingConfig) -> Iterator[int]:
    """Yield the tokens of one answer as they are chosen, without the end-of-turn."""
    decoding = Decoding(model, [prompt], 1, config)
    for number in uniforms(seed, config.max_tokens):
        token = draw(decoding.probabilities(), torch.tensor([number], device=decoding.hidden.device))
        if token.item() == end:
            return
        yield int(token.item())
        decoding.push(token)
