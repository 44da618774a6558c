"""From sampled responses to a scored rollout: all that PPO, RLOO and GRPO need to know about them.

    prompts -> generate -> Responses -> log-probabilities, values, scores -> Rollout

Learning uses log-probabilities that are recomputed with the training forward pass, never the sampler's own, so that the
ratio is 1 before the first step. A response that was cut at the limit has no end-of-turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tutelage.learning.head import head_logprobs
from tutelage.learning.kl import kl_per_response, mean_k3
from tutelage.learning.losses import masked_mean
from tutelage.model.gpt import GPT, ResidualStream
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import adapters_off
from tutelage.model.padding import STEP, rounded
from tutelage.model.vocabulary import token_rows
from tutelage.sampling.sampler import Response

ROWS_AT_ONCE = 16  # rows of similar length in one forward pass


@dataclass(frozen=True)
class Responses:
    """B prompts with one response each: L tokens in the longest row, T in the longest response."""

    ids: Tensor  # (B, L) prompt, response, padding; right-padded rows need no mask beyond the causal one
    starts: Tensor  # (B,) index of the first response token
    tokens: Tensor  # (B, T) response ids, right-padded
    mask: Tensor  # (B, T) True up to and including end-of-turn
    ended: Tensor  # (B,) True if the response has an end-of-turn
    stream: ResidualStream | None = None  # residual stream of the whole rollout after the frozen lowest blocks
    stream_rows: Tensor | None = None  # (B,) the stream's row for each row here; None: all, in order

    @property
    def last(self) -> Tensor:
        """(B,) index in `ids` of each response's last token."""
        return self.starts + self.mask.sum(1) - 1

    def rows(self, chosen: Tensor) -> "Responses":
        """A subset of the rows, with little more padding than they need. The stream is large and is not copied."""
        length, width = rounded(int(self.last[chosen].max()) + 1), int(self.mask[chosen].sum(1).max())
        return Responses(
            ids=self.ids[chosen, :length],
            starts=self.starts[chosen],
            tokens=self.tokens[chosen, :width],
            mask=self.mask[chosen, :width],
            ended=self.ended[chosen],
            stream=self.stream,
            stream_rows=chosen if self.stream_rows is None else self.stream_rows[chosen],
        )

    def ending_with(self, end: int) -> "Responses":
        """The same, but each response that another token ended has `end` there: a reward model knows no other.

        Without the stream if anything changes, because it was computed from the other token.
        """
        at = self.last[:, None]
        other = self.ended[:, None] & (self.ids.gather(1, at) != end)
        if not other.any():
            return self
        ids = self.ids.scatter(1, at, torch.where(other, end, self.ids.gather(1, at)))
        return replace(self, ids=ids, stream=None)

    def stream_for(self, model: GPT) -> ResidualStream | None:
        """The stream of these rows, for this model to continue from; None if it comes from another model's blocks."""
        if not self.stream or self.stream.source is not model.embedding.weight:
            return None
        rows = slice(None) if self.stream_rows is None else self.stream_rows
        return self.stream._replace(x=self.stream.x[rows, : self.ids.shape[1]])


def pad_responses(
    prompts: Sequence[Sequence[int]], responses: Sequence[Response], pad: int, device: torch.device
) -> Responses:
    """Join each prompt with its response, and right-pad all into one batch."""
    whole = [torch.tensor([*p, *r.ids]) for p, r in zip(prompts, responses, strict=True)]
    tokens = pad_sequence([torch.tensor(r.ids) for r in responses], batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(r.ids) for r in responses])
    return Responses(
        ids=pad_sequence(whole, batch_first=True, padding_value=pad).to(device),
        starts=torch.tensor([len(p) for p in prompts], device=device),
        tokens=tokens.to(device),
        mask=(torch.arange(tokens.shape[1]) < lengths[:, None]).to(device),
        ended=torch.tensor([r.ended for r in responses], device=device),
    )


def response_positions(responses: Responses) -> tuple[Tensor, Tensor]:
    """Rows (N,) and columns (N,) of `ids` that predict the response tokens, in the order of mask.nonzero()."""
    rows, steps = responses.mask.nonzero(as_tuple=True)
    return rows, responses.starts[rows] - 1 + steps


def at_responses(forward: Callable[[Responses, int], Tensor], responses: Responses) -> Tensor:
    """(N, ...): the outputs of `forward` that belong to the response tokens, in the order of mask.nonzero().

    forward(rows, first) -> (B, L - first, ...) gets rows of similar length, so that short ones are padded little. Its
    output begins at column `first`, at or before the one that predicts the earliest response token of these rows. A
    token's output is taken where the token is predicted, so every row needs a prompt.
    """
    index = responses.mask.flatten().cumsum(0).view(responses.mask.shape) - 1  # of each response token among the N
    outputs, indices = [], []
    for rows in by_length(responses):
        group = responses.rows(rows)
        first = (int(group.starts.min()) - 1) // STEP * STEP
        row, column = response_positions(group)
        outputs.append(forward(group, first)[row, column - first])
        indices.append(index[rows, : group.mask.shape[1]][group.mask])
    return torch.cat(outputs)[torch.cat(indices).argsort()]


def by_length(responses: Responses) -> Sequence[Tensor]:
    """Row numbers in groups of similar length, the longest first."""
    return responses.last.argsort(descending=True, stable=True).split(ROWS_AT_ONCE)


def response_hidden(policy: GPT, responses: Responses) -> Tensor:
    """(N, C): the hidden states that predict the response tokens, in the order of mask.nonzero()."""

    def forward(rows: Responses, first: int) -> Tensor:
        return policy.trunk(rows.ids, stream=rows.stream_for(policy), first=first)

    return at_responses(forward, responses)


def response_logprobs(policy: GPT, responses: Responses, temperature: float = 1.0) -> Tensor:
    """(B, T): log pi(token | prefix) of each response token, 0 outside the mask. The head runs on these tokens only.

    pi is the distribution that the sampler draws from: rows of the head that belong to no token are left out.
    """
    hidden, head = response_hidden(policy, responses), policy.head_weight
    head = head if token_rows(policy) == len(head) else head[: token_rows(policy)]
    logprobs = head_logprobs(hidden, head, responses.tokens[responses.mask], temperature)
    return torch.zeros(responses.mask.shape, device=logprobs.device).masked_scatter(responses.mask, logprobs)


def response_values(value: ScalarGPT, responses: Responses) -> Tensor:
    """(B, T): V(prefix), the value just before each response token, 0 outside the mask."""
    values = at_responses(lambda rows, first: value(rows.ids, rows.stream_for(value.trunk), first), responses)
    return torch.zeros(responses.mask.shape, device=values.device).masked_scatter(responses.mask, values)


def response_scores(reward: ScalarGPT, responses: Responses) -> Tensor:
    """(B,): the reward model's score of each response."""
    groups = by_length(responses)
    batches = map(responses.rows, groups)
    scores = [reward.at(batch.ids, batch.last, stream=batch.stream_for(reward.trunk)) for batch in batches]
    return torch.cat(scores)[torch.cat(list(groups)).argsort()]


@dataclass(frozen=True)
class Rollout:
    """What one iteration learns from. B and T are those of `Responses`."""

    responses: Responses
    logprobs: Tensor  # (B, T) log pi_old(token | prefix), of the policy that sampled
    ref_logprobs: Tensor  # (B, T) log pi_SFT(token | prefix), of the reference
    values: Tensor | None  # (B, T) V(prefix); None without a value network
    scores: Tensor  # (B,) one per response, penalties included
    conversations: Sequence[list[dict[str, str]]] = ()  # each prompt with its response, as messages

    def rows(self, chosen: Tensor) -> "Rollout":
        """A subset of the rows, with no more padding than they need."""
        responses = self.responses.rows(chosen)
        width = responses.mask.shape[1]
        return Rollout(
            responses=responses,
            logprobs=self.logprobs[chosen, :width],
            ref_logprobs=self.ref_logprobs[chosen, :width],
            values=None if self.values is None else self.values[chosen, :width],
            scores=self.scores[chosen],
            conversations=[self.conversations[row] for row in chosen.tolist()] if self.conversations else (),
        )


@torch.no_grad()
def score_rollout(
    policy: GPT,
    reference: GPT | None,
    value: ScalarGPT | None,
    scores: Tensor,
    responses: Responses,
    *,
    parts: Sequence[Tensor],
    temperature: float,
) -> Rollout:
    """Run policy, reference and value network over sampled responses, whose scores (B,) are given.

    Without a `reference` model, the reference is the policy with its adapters off. `parts` are the rows of each
    minibatch. Each model runs part by part, in the shapes of the training forward pass: in bf16 a product of another
    shape rounds differently, and the first ratio would not be 1.
    """

    def logprobs_by(model: GPT) -> Tensor:
        return in_parts(lambda rows: response_logprobs(model, rows, temperature), responses, parts)

    if reference:
        ref_logprobs = logprobs_by(reference)
    else:
        with adapters_off(policy):
            ref_logprobs = logprobs_by(policy)
    return Rollout(
        responses=responses,
        logprobs=logprobs_by(policy),
        ref_logprobs=ref_logprobs,
        values=in_parts(lambda rows: response_values(value, rows), responses, parts) if value else None,
        scores=scores,
    )


def in_parts(forward: Callable[[Responses], Tensor], responses: Responses, parts: Sequence[Tensor]) -> Tensor:
    """(B, T): the outputs of `forward` on each part's rows, put together, 0 in rows of no part."""
    whole = torch.zeros(responses.mask.shape, device=responses.ids.device)
    for part in parts:
        rows = part.to(whole.device)
        output = forward(responses.rows(rows))
        whole[rows, : output.shape[1]] = output
    return whole


def describe(rollout: Rollout, kl_coef: float) -> dict[str, float]:
    """Metrics of one rollout, as docs/metrics.md defines them."""
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
