"""From logits to the token that is chosen: pure functions of tensors, and what has been written so far.

    logits -> penalties -> bias -> temperature -> top-k -> top-p -> min-p -> probabilities -> a uniform number -> token

Penalties: repetition as in CTRL (Keskar et al. 2019, section 4.1), over prompt and answer; frequency and presence as in
OpenAI's API, over the answer. Top-p is Holtzman et al. 2020, the token that crosses p kept; min-p Nguyen et al. 2024.
The order of the filters is transformers'.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import InputError

SMALLEST = 1e-5  # temperature: far below it logits divided by it are infinite
CANDIDATES = (256, 4096)  # how many of the likeliest tokens top-p tries before it sorts all


@dataclass(frozen=True, kw_only=True)
class DistributionConfig:
    """What is made of the model's distribution before a token is drawn. Raises InputError for meaningless values."""

    temperature: float = 1.0
    """Logits are divided by it; 0, or less than fp32 can divide by, takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 is all."""
    top_p: float = 1.0
    """Only the smallest set of tokens whose mass reaches p; 1 is all."""
    min_p: float = 0.0
    """Only tokens at least this many times as likely as the likeliest; 0 is all."""
    repetition_penalty: float = 1.0
    """Logits of tokens that stand in prompt or answer are divided by it where positive, else multiplied; 1 is off."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time the answer has it."""
    presence_penalty: float = 0.0
    """Taken off a token's logit once the answer has it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""

    def __post_init__(self) -> None:
        bounds = {
            "temperature": (0, float("inf")), "top_k": (0, float("inf")), "top_p": (0, 1), "min_p": (0, 1),
            "repetition_penalty": (1e-6, float("inf")), "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} {getattr(self, name)}: must be from {low:g} to {high:g}")

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(DistributionConfig):
    """How an answer is sampled."""

    max_tokens: int
    """Longest answer in tokens, end-of-turn included."""


class Written:
    """Which tokens each row of a batch has seen: in its prompt, and how often in its answer."""

    def __init__(self, prompts: Sequence[Sequence[int]], samples: int, vocab_size: int, device: torch.device):
        self.prompt = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            self.prompt[row, list(prompt)] = True
        self.prompt = self.prompt.to(device).repeat_interleave(samples, 0)
        self.counts = torch.zeros(self.prompt.shape, device=device)

    def add(self, tokens: Tensor) -> None:
        """One more token (B,) for each row."""
        self.counts.scatter_add_(1, tokens[:, None], torch.ones_like(tokens, dtype=torch.float32)[:, None])

    def keep(self, rows: Tensor) -> None:
        self.prompt, self.counts = self.prompt[rows], self.counts[rows]

    def penalise(self, logits: Tensor, config: DistributionConfig) -> Tensor:
        """(B, V) logits less what their tokens' earlier uses cost, in fp32."""
        logits, said = logits.float(), self.counts > 0
        again = torch.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
        logits = torch.where(self.prompt | said, again, logits)
        return logits - config.frequency_penalty * self.counts - config.presence_penalty * said


def filtered_probabilities(logits: Tensor, config: DistributionConfig) -> Tensor:
    """(B, V) logits -> (B, V) probabilities after temperature, top-k, top-p and min-p, in fp32."""
    logits = biased(logits.float(), config)
    if config.temperature < SMALLEST:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    probabilities = (logits / config.temperature).softmax(-1)
    if 0 < config.top_k < logits.shape[-1]:
        smallest = probabilities.topk(config.top_k, dim=-1).values[:, -1:]
        probabilities = _renormalised(probabilities.where(probabilities >= smallest, 0.0))
    if config.top_p < 1:
        probabilities = _renormalised(nucleus(probabilities, config.top_p))
    if config.min_p > 0:
        least = config.min_p * probabilities.max(-1, keepdim=True).values
        probabilities = _renormalised(probabilities.where(probabilities >= least, 0.0))
    return probabilities


def nucleus(probabilities: Tensor, p: float) -> Tensor:
    """(B, V): the smallest set of tokens whose mass reaches p, the rest 0; of equally likely ones the lowest ids.

    Sorting a whole vocabulary takes longer than the model (49,152 tokens: 3 ms a row), so the likeliest few are tried
    first: they are enough where p is reached among tokens that are likelier than the last of them.
    """
    vocab_size = probabilities.shape[-1]
    kept, rows = torch.zeros_like(probabilities), torch.arange(len(probabilities), device=probabilities.device)
    for count in (*(few for few in CANDIDATES if few < vocab_size), vocab_size):
        some = probabilities[rows]
        every = torch.arange(vocab_size, device=some.device).expand_as(some)
        tokens = every if count == vocab_size else some.topk(count).indices.sort(-1).values
        ordered, order = some.gather(-1, tokens).sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # mass of what is more likely: the crossing token has less than p
        outside = before >= max(p, 1e-9)  # p = 0 still leaves the most likely token
        kept[rows] = torch.zeros_like(some).scatter(-1, tokens.gather(-1, order), ordered.masked_fill(outside, 0.0))
        rows = rows[~(outside & (ordered > ordered[:, -1:])).any(-1)]
        if len(rows) == 0:
            break
    return kept


def biased(logits: Tensor, config: DistributionConfig) -> Tensor:
    """(B, V) logits with the wanted bias of single tokens."""
    if not config.logit_bias:
        return logits
    tokens, added = zip(*config.logit_bias, strict=True)
    bias = logits.new_zeros(logits.shape[-1]).index_add(
        0, torch.tensor(tokens).to(logits.device), logits.new_tensor(added)
    )
    return logits + bias


def _renormalised(probabilities: Tensor) -> Tensor:
    return probabilities / probabilities.sum(-1, keepdim=True)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(B, V), (B,) numbers in [0, 1) -> (B,): the token in whose slice of the cumulative sum the number falls."""
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    below = total.nextafter(torch.zeros_like(total))  # rounding may not point past the last token that has any mass
    return torch.searchsorted(cumulative, (uniform[:, None] * total).minimum(below), right=True).squeeze(-1)
