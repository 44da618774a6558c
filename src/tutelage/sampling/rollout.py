"""Prompts to scored responses: everything PPO, RLOO and GRPO need to know about what the policy did.

    prompts -> generate -> Responses -> log-probabilities, values, score -> Rollout

The log-probabilities used for learning are recomputed with the training forward, so that the ratio is 1 before the
first step; the sampler's own are never used. A response that was cut at the limit has no end-of-turn: its score is
replaced (default -1, Huang et al. 2024), for demonstrations score 0 on average.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tutelage.learning.head import head_logprobs
from tutelage.learning.kl import kl_per_response, mean_k3
from tutelage.learning.losses import masked_mean
from tutelage.model.gpt import GPT, Stream
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import adapters_off
from tutelage.sampling.sampler import Response

ROWS_AT_ONCE = 16  # rows of like length in one forward pass


@dataclass(frozen=True)
class Responses:
    """B prompts with one response each; L tokens in all, T of a response."""

    ids: Tensor  # (B, L) prompt, response, then PAD: plain causal attention needs no mask
    starts: Tensor  # (B,) index of the first response token
    tokens: Tensor  # (B, T) response ids, right-padded
    mask: Tensor  # (B, T) True up to and including end-of-turn
    ended: Tensor  # (B,) True where the end-of-turn came
    stream: Stream | None = None  # the whole rollout's tokens as they leave the blocks that nothing trains
    numbers: Tensor | None = None  # (B,) which of the stream's rows these are; None: all, in order

    @property
    def last(self) -> Tensor:
        """(B,): index in `ids` of each response's last token."""
        return self.starts + self.mask.sum(1) - 1

    def rows(self, chosen: Tensor) -> "Responses":
        """Some of the rows, the padding cut to what they need. The stream, which is large, is not copied."""
        longest, widest = int(self.last[chosen].max()) + 1, int(self.mask[chosen].sum(1).max())
        ids, tokens, mask = self.ids[chosen, :longest], self.tokens[chosen, :widest], self.mask[chosen, :widest]
        numbers = chosen if self.numbers is None else self.numbers[chosen]
        return Responses(ids, self.starts[chosen], tokens, mask, self.ended[chosen], self.stream, numbers)

    def stream_for(self, model: GPT) -> Stream | None:
        """What this model may go on from in these rows: nothing if the stream is another model's."""
        if not self.stream or self.stream.source is not model.embedding.weight:
            return None
        rows = slice(None) if self.numbers is None else self.numbers
        return self.stream._replace(x=self.stream.x[rows, : self.ids.shape[1]])


def pad_responses(
    prompts: Sequence[Sequence[int]], answers: Sequence[Response], pad: int, device: torch.device
) -> Responses:
    """Right-pad prompts with their answers into one batch."""
    whole = [torch.tensor([*p, *a.ids]) for p, a in zip(prompts, answers, strict=True)]
    tokens = pad_sequence([torch.tensor(a.ids) for a in answers], batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(a.ids) for a in answers])
    return Responses(
        ids=pad_sequence(whole, batch_first=True, padding_value=pad).to(device),
        starts=torch.tensor([len(p) for p in prompts], device=device),
        tokens=tokens.to(device),
        mask=(torch.arange(tokens.shape[1]) < lengths[:, None]).to(device),
        ended=torch.tensor([a.ended for a in answers], device=device),
    )


def response_positions(responses: Responses) -> tuple[Tensor, Tensor]:
    """Rows and columns of `ids` whose hidden state predicts each response token, in the order of mask.nonzero()."""
    rows, steps = responses.mask.nonzero(as_tuple=True)
    return rows, responses.starts[rows] - 1 + steps


def at_responses(forward: Callable[[Responses, int], Tensor], responses: Responses) -> Tensor:
    """forward(rows, first) -> (B, L - first, ...) of the tokens from `first` on, as no response begins earlier. Picked
    where each response token is predicted, in the order of mask.nonzero(). Every row has a prompt.

    Rows of like length are run together, so that short ones do not pay for the padding of long ones.
    """
    number = responses.mask.flatten().cumsum(0).view(responses.mask.shape) - 1
    picked, numbers = [], []
    for rows in by_length(responses):
        some = responses.rows(rows)
        first = int(some.starts.min()) - 1
        row, column = response_positions(some)
        picked.append(forward(some, first)[row, column - first])
        numbers.append(number[rows, : some.mask.shape[1]][some.mask])
    return torch.cat(picked)[torch.cat(numbers).argsort()]


def by_length(responses: Responses) -> Sequence[Tensor]:
    """Row numbers in groups of like length, the longest first."""
    return responses.last.argsort(descending=True, stable=True).split(ROWS_AT_ONCE)


def response_hidden(policy: GPT, responses: Responses) -> Tensor:
    """(N, C): the hidden states that predict the response tokens, in the order of mask.nonzero()."""
    return at_responses(
        lambda some, first: policy.trunk(some.ids, stream=some.stream_for(policy), first=first), responses
    )


def response_logprobs(policy: GPT, responses: Responses, temperature: float = 1.0) -> Tensor:
    """(B, T): log pi(token | prefix) of each response token, 0 outside the mask.

    The head runs on responses only.
    """
    hidden = response_hidden(policy, responses)
    logprobs = head_logprobs(hidden, policy.head_weight, responses.tokens[responses.mask], temperature)
    return torch.zeros(responses.mask.shape, device=logprobs.device).masked_scatter(responses.mask, logprobs)


def response_values(value: ScalarGPT, responses: Responses) -> Tensor:
    """(B, T): V(prefix) just before each response token, 0 outside the mask."""
    values = at_responses(lambda some, first: value(some.ids, some.stream_for(value.trunk), first), responses)
    return torch.zeros(responses.mask.shape, device=values.device).masked_scatter(responses.mask, values)


def response_scores(reward: ScalarGPT, responses: Responses) -> Tensor:
    """(B,): the reward model's score of each whole response."""
    groups = by_length(responses)
    some = map(responses.rows, groups)
    scores = [reward.at(few.ids, few.last, stream=few.stream_for(reward.trunk)) for few in some]
    return torch.cat(scores)[torch.cat(list(groups)).argsort()]


@dataclass(frozen=True)
class Rollout:
    """What one iteration learns from. (B, T) like the responses' tokens."""

    responses: Responses
    logprobs: Tensor  # (B, T) log pi_old(token | prefix): the policy that sampled
    ref_logprobs: Tensor  # (B, T) log pi_SFT(token | prefix)
    values: Tensor | None  # (B, T) V(prefix); None without a value network
    scores: Tensor  # (B,) reward, one per whole response; missing_end where it has no end
    conversations: Sequence[list[dict[str, str]]] = ()  # each prompt with its response, in words

    def rows(self, chosen: Tensor) -> "Rollout":
        """Some of the rows, the padding cut to what they need."""
        responses = self.responses.rows(chosen)
        wide = responses.mask.shape[1]
        return Rollout(
            responses=responses,
            logprobs=self.logprobs[chosen, :wide],
            ref_logprobs=self.ref_logprobs[chosen, :wide],
            values=None if self.values is None else self.values[chosen, :wide],
            scores=self.scores[chosen],
            conversations=[self.conversations[row] for row in chosen.tolist()] if self.conversations else (),
        )


@torch.no_grad()
def score_rollout(
    policy: GPT, reference: GPT | None, value: ScalarGPT | None, scores: Tensor, responses: Responses, *,
    parts: Sequence[Tensor], missing_end: float, temperature: float,
) -> Rollout:  # fmt: skip
    """Run the models over sampled responses, whose scores (B,) are known. Without a reference it is the policy with
    its adapters off.

    What is compared with the training forward is computed in `parts`, the rows of each minibatch: in bf16 a product of
    another shape is rounded otherwise, and the first ratio would not be 1.
    """

    def logprobs_by(model: GPT) -> Tensor:
        return in_parts(lambda some: response_logprobs(model, some, temperature), responses, parts)

    if reference:
        ref_logprobs = logprobs_by(reference)
    else:
        with adapters_off(policy):
            ref_logprobs = logprobs_by(policy)
    return Rollout(
        responses=responses,
        logprobs=logprobs_by(policy),
        ref_logprobs=ref_logprobs,
        values=in_parts(lambda some: response_values(value, some), responses, parts) if value else None,
        scores=torch.where(responses.ended, scores, missing_end),
    )


def in_parts(forward: Callable[[Responses], Tensor], responses: Responses, parts: Sequence[Tensor]) -> Tensor:
    """(B, T): forward(rows) of each part, put together."""
    whole = torch.zeros(responses.mask.shape, device=responses.ids.device)
    for part in parts:
        rows = part.to(whole.device)
        found = forward(responses.rows(rows))
        whole[rows, : found.shape[1]] = found
    return whole


def describe(rollout: Rollout, kl_coef: float) -> dict[str, float]:
    """What one rollout says about the policy that made it."""
    mask = rollout.responses.mask
    score = float(rollout.scores.mean())
    kl = float(kl_per_response(rollout.logprobs, rollout.ref_logprobs, mask).mean())
    return {
        "score": score,
        "score_std": float(rollout.scores.std(unbiased=False)),
        "kl": kl,
        "kl_k3": float(mean_k3(rollout.logprobs, rollout.ref_logprobs, mask)),
        "kl_coef": kl_coef,
        "objective": score - kl_coef * kl,
        "entropy": float(-masked_mean(rollout.logprobs, mask)),
        "length": float(mask.sum(1).float().mean()),
        "end_of_turn_rate": float(rollout.responses.ended.float().mean()),
    }
