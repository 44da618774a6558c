"""How often models and rewards order the pairs of given rankings as the annotators did.

    comparisons, a reward            -> scores of the responses             -> accuracy
    comparisons, a language model    -> log pi - log pi_ref of the responses, or without a reference
                                        the mean log-probability per token -> accuracy

A tie counts one half. Rankings that do not fit a model's context are left out for it, so `pairs` may differ by model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.data.rankings import encode_prompt, encode_response, length_matched, strict_pairs
from tutelage.data.records import Comparison
from tutelage.errors import InputError
from tutelage.evals.preference import mean, mean_with_interval, preference
from tutelage.model.gpt import GPT
from tutelage.rewards.reward import Reward, with_response
from tutelage.runs.device import Device, release_memory
from tutelage.runs.folder import load_policy, same_tokenizer
from tutelage.sampling.likelihood import summed_logprobs
from tutelage.sampling.sampler import for_inference
from tutelage.text.tokenizer import Tokenizer

Encoded = tuple[Comparison, list[list[int]]]  # a comparison, and each response as ids: prompt, response, end of turn


def reward_row(reward: Reward, comparisons: Sequence[Comparison], seed: int) -> dict[str, Any]:
    """A reward's accuracy. Raises InputError if no comparison fits a reward model's context."""
    models, tokenizer = reward.models, getattr(reward, "tokenizer", None)
    context = min((model.trunk.config.context for model in models), default=None)
    chosen = encode(comparisons, tokenizer, context) if tokenizer else [(c, []) for c in comparisons]
    conversations = [[with_response(c.prompt, text) for text in c.responses] for c, _ in chosen]
    scores = reward.score_groups([ids for _, ids in chosen], conversations)
    return accuracy(chosen, scores, tokenizer, seed) | {"by": "score"}


def policy_row(
    policy: Path, reference: Path | None, comparisons: Sequence[Comparison], device: Device, seed: int
) -> dict[str, Any]:
    """A language model's accuracy: by its log ratio to the reference, or without one by the mean log-probability."""
    if reference and reference.resolve() != policy.resolve():
        same_tokenizer(reference, policy)
    else:
        reference = None
    model, tokenizer = load_policy(policy, device, frozen=True)
    chosen = encode(comparisons, tokenizer, model.config.context)
    scores = log_probabilities(for_inference(model), chosen, tokenizer)
    if reference is None:
        sizes = [[len(ids) - prompt_length(c, tokenizer) for ids in group] for c, group in chosen]
        scores = [score.cpu() / torch.tensor(size) for score, size in zip(scores, sizes, strict=True)]
        return accuracy(chosen, scores, tokenizer, seed) | {"by": "mean log-probability"}
    del model
    release_memory()
    below = log_probabilities(for_inference(load_policy(reference, device, frozen=True)[0]), chosen, tokenizer)
    ratios = [score - other for score, other in zip(scores, below, strict=True)]
    return accuracy(chosen, ratios, tokenizer, seed) | {"by": "log ratio"}


def encode(comparisons: Sequence[Comparison], tokenizer: Tokenizer, context: int | None) -> list[Encoded]:
    """The comparisons all of whose responses fit the context."""
    encoded = [(c, [encode_response(c.prompt, text, tokenizer) for text in c.responses]) for c in comparisons]
    fitting = [(c, group) for c, group in encoded if context is None or max(map(len, group)) <= context]
    if not fitting:
        raise InputError(
            f"{comparisons[0].where}: this comparison and all others exceed the model's context of {context} tokens; "
            "give shorter ones"
        )
    return fitting


def prompt_length(comparison: Comparison, tokenizer: Tokenizer) -> int:
    return len(encode_prompt(comparison.prompt, tokenizer))


@torch.inference_mode()
def log_probabilities(model: GPT, chosen: Sequence[Encoded], tokenizer: Tokenizer) -> list[Tensor]:
    """One (K,) tensor per comparison: log pi(response | prompt), end of turn included."""
    starts = [prompt_length(c, tokenizer) for c, _ in chosen]
    return summed_logprobs(model, [group for _, group in chosen], starts, tokenizer.pad_id)


def accuracy(
    chosen: Sequence[Encoded], scores: Sequence[Tensor], tokenizer: Tokenizer | None, seed: int
) -> dict[str, Any]:
    """The share of strict pairs in the annotators' order, its interval by conversation, and that of equal lengths."""
    right: list[float] = []
    matched: list[bool] = []
    clusters: list[str] = []
    for i, ((comparison, _), values) in enumerate(zip(chosen, scores, strict=True)):
        pairs, score = strict_pairs(comparison.ranks), values.tolist()
        right += [preference(score[winner], score[loser]) for winner, loser in pairs]
        clusters += [comparison.conversation or str(i)] * len(pairs)
        matched += length_matched(comparison, tokenizer) if tokenizer else [False] * len(pairs)
    found, interval = mean_with_interval(right, clusters, seed)
    same_length = mean([r for r, m in zip(right, matched, strict=True) if m])
    return {
        "accuracy": found,
        "accuracy_ci": list(interval),
        "length_matched_accuracy": same_length,
        "pairs": len(right),
    }
