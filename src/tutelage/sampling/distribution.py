"""From logits to a sampled token: pure functions of tensors, plus the token history that penalties need.

    logits -> penalties -> bias -> temperature -> top-k -> top-p -> min-p -> probabilities -> a uniform number -> token

The repetition penalty is CTRL's (Keskar et al. 2019, section 4.1) and covers prompt and response. The frequency and
presence penalties are those of OpenAI's API and cover the response only. Top-p is Holtzman et al. 2020 and keeps the
token that crosses p; min-p is Nguyen et al. 2024. The filters run in the same order as in transformers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tutelage.errors import InputError
from tutelage.options import Range

# What `tutelage chat` and the chat page sample with. At temperature 1 a small model's unlikely tokens, each a slip,
# come up in most answers; docs/results.md compares settings. The API's defaults are OpenAI's.
CHAT_TEMPERATURE, CHAT_MIN_P = 0.7, 0.1

GREEDY_BELOW = 1e-5  # temperature; dividing logits by a far smaller one overflows
CANDIDATES = (256, 4096)  # how many of the most likely tokens top-p tries before it sorts the whole vocabulary
INFINITY = float("inf")
# For responses that are compared with each other. Far below .01 a state always gives the same token; at 10 the
# distribution is nearly uniform over the vocabulary.
SampledTemperature = Annotated[
    float,
    Range(least=0.01, most=10, why="colder sampling gives the same response every time, hotter sampling gives noise"),
]
BOUNDS = {
    "temperature": (0, INFINITY),
    "top_k": (0, INFINITY),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (1e-6, INFINITY),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}


@dataclass(frozen=True, kw_only=True)
class DistributionConfig:
    """How the model's distribution is changed before a token is drawn. Raises InputError for values out of bounds."""

    temperature: float = 1.0
    """Logits are divided by it. 0, like any value below 1e-5, takes the most likely token."""
    top_k: int = 0
    """Keep only the k most likely tokens. 0 keeps all."""
    top_p: float = 1.0
    """Keep only the smallest set of tokens whose total probability reaches p. 1 keeps all."""
    min_p: float = 0.0
    """Keep only tokens with at least this fraction of the most likely token's probability. 0 keeps all."""
    repetition_penalty: float = 1.0
    """Logits of tokens in the prompt or the response are divided by it if positive, else multiplied. 1 turns it off."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time the token occurs in the response."""
    presence_penalty: float = 0.0
    """Subtracted once from a token's logit if the token occurs in the response."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs (token, number added to its logit)."""

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                allowed = f"at least {low:g}" if high == INFINITY else f"between {low:g} and {high:g}"
                raise InputError(f"{name} {value}: must be {allowed}")

    @property
    def penalised(self) -> bool:
        """Whether any penalty is on, so that a token history is needed."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(DistributionConfig):
    """How a response is sampled."""

    max_tokens: int
    """Maximum length of a response in tokens, end-of-turn included."""


class TokenHistory:
    """For each row of a batch: which tokens occur in its prompt, and how often each occurs in its response."""

    def __init__(self, prompts: Sequence[Sequence[int]], samples: int, vocab_size: int, device: torch.device):
        """Rows are the prompts, each repeated `samples` times in a row."""
        self.prompt = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            self.prompt[row, list(prompt)] = True
        self.prompt = self.prompt.to(device).repeat_interleave(samples, 0)
        self.counts = torch.zeros(self.prompt.shape, device=device)

    def add(self, tokens: Tensor) -> None:
        """Count one more response token (B,) for each row."""
        self.counts.scatter_add_(1, tokens[:, None], torch.ones_like(tokens, dtype=torch.float32)[:, None])

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.prompt, self.counts = self.prompt[rows], self.counts[rows]

    def penalise(self, logits: Tensor, config: DistributionConfig) -> Tensor:
        """(B, V) logits -> (B, V) logits with all three penalties applied, in fp32."""
        logits, in_response = logits.float(), self.counts > 0
        repeated = torch.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
        logits = torch.where(self.prompt | in_response, repeated, logits)
        return logits - config.frequency_penalty * self.counts - config.presence_penalty * in_response


def filtered_probabilities(logits: Tensor, config: DistributionConfig) -> Tensor:
    """(B, V) logits -> (B, V) probabilities after bias, temperature, top-k, top-p and min-p, in fp32."""
    logits = biased(logits.float(), config)
    if config.temperature < GREEDY_BELOW:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = (logits / config.temperature).softmax(-1)
    if 0 < config.top_k < logits.shape[-1]:
        smallest = probabilities.topk(config.top_k, dim=-1).values[:, -1:]
        probabilities = _renormalised(probabilities.where(probabilities >= smallest, 0.0))
    if config.top_p < 1:
        probabilities = _renormalised(nucleus(probabilities, config.top_p))
    if config.min_p > 0:
        smallest = config.min_p * probabilities.max(-1, keepdim=True).values
        probabilities = _renormalised(probabilities.where(probabilities >= smallest, 0.0))
    return probabilities


def nucleus(probabilities: Tensor, p: float) -> Tensor:
    """(B, V) -> (B, V): keep the smallest set of tokens whose total probability reaches p, set the rest to 0.

    Ties go to the lowest ids. Sorting a whole vocabulary takes longer than the model (49,152 tokens: 3 ms a row), so
    the most likely few tokens are tried first. They suffice when p is reached by tokens strictly more likely than the
    last of them; the remaining rows are tried again with more tokens.
    """
    vocab_size = probabilities.shape[-1]
    kept, rows = torch.zeros_like(probabilities), torch.arange(len(probabilities), device=probabilities.device)
    for count in (*(few for few in CANDIDATES if few < vocab_size), vocab_size):
        remaining = probabilities[rows]
        every = torch.arange(vocab_size, device=remaining.device).expand_as(remaining)
        tokens = every if count == vocab_size else remaining.topk(count).indices.sort(-1).values
        ordered, order = remaining.gather(-1, tokens).sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # total of all likelier tokens; below p for the token that crosses p
        outside = before >= max(p, 1e-9)  # p = 0 still keeps the most likely token
        inside = ordered.masked_fill(outside, 0.0)
        kept[rows] = torch.zeros_like(remaining).scatter(-1, tokens.gather(-1, order), inside)
        rows = rows[~(outside & (ordered > ordered[:, -1:])).any(-1)]
        if len(rows) == 0:
            break
    return kept


def biased(logits: Tensor, config: DistributionConfig) -> Tensor:
    """(B, V) logits with `logit_bias` added."""
    if not config.logit_bias:
        return logits
    tokens, values = zip(*config.logit_bias, strict=True)
    ids, added = torch.tensor(tokens).to(logits.device), logits.new_tensor(values)
    return logits + logits.new_zeros(logits.shape[-1]).index_add(0, ids, added)


def _renormalised(probabilities: Tensor) -> Tensor:
    return probabilities / probabilities.sum(-1, keepdim=True)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(B, V) probabilities, (B,) numbers in [0, 1) -> (B,) tokens, by inverting the cumulative distribution."""
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    below = total.nextafter(torch.zeros_like(total))  # rounding must not select a token past the last possible one
    return torch.searchsorted(cumulative, (uniform[:, None] * total).minimum(below), right=True).squeeze(-1)
