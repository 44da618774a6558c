"""Preferences -> token ids to train on, and the held-out set.

    Comparison -> Ranking: K token sequences (prompt, response, end of turn) and their ranks

The reward model and the stages that train on preferences directly share this module, and thus the held-out set, so
their accuracies are measured on the same pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tutelage.data.records import Comparison, Feedback, Messages
from tutelage.data.splits import unit_hash
from tutelage.errors import InputError
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

MATCHED = 0.1  # responses are length-matched if their lengths differ by at most this share of the longer


@dataclass(frozen=True)
class Ranking:
    """A comparison as token ids."""

    sequences: list[list[int]]  # K sequences: prompt, response, end-of-turn token
    ranks: list[int]
    prompt_length: int  # number of tokens in the prompt, with which every sequence starts


def strict_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(winner, loser) indices of all pairs that are not tied: K(K-1)/2 pairs if there are no ties."""
    pairs = [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in combinations(range(len(ranks)), 2)]
    return [(winner, loser) for winner, loser in pairs if ranks[winner] != ranks[loser]]


def held_out(record: Comparison | Feedback, share: float) -> bool:
    """Whether a record is held out. A hash of its conversation decides, so no conversation is in both sets."""
    return unit_hash("reward", record.conversation or record.prompt[-1]["content"]) < share


def encode_ranking(comparison: Comparison, tokenizer: Tokenizer, context: int) -> Ranking:
    """Raises InputError if the prompt and a response do not fit the context."""
    sequences = [encode_response(comparison.prompt, response, tokenizer) for response in comparison.responses]
    check_fits(comparison, max(len(sequence) for sequence in sequences), context)
    return Ranking(sequences, comparison.ranks, len(encode_prompt(comparison.prompt, tokenizer)))


def encode_prompt(prompt: Messages, tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the response begins. Every `encode_response` for this prompt starts with them."""
    return encode_chat(tokenizer, prompt, add_generation_prompt=True).ids


def encode_response(prompt: Messages, response: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of prompt and response. The last one is the end-of-turn token, at which the score is read."""
    encoded = encode_chat(tokenizer, [*prompt, {"role": "assistant", "content": response}])
    last = max(i for i, supervised in enumerate(encoded.supervised) if supervised)
    return encoded.ids[: last + 1]


def check_fits(record: Comparison | Feedback, size: int, context: int) -> None:
    """Raises InputError if `size` tokens of prompt and response exceed the context."""
    if size > context:
        raise InputError(
            f"{record.where}: prompt and response need {size} tokens, but the model's context is {context}; "
            f"shorten the prompt that ends {record.prompt[-1]['content'][-40:]!r}"
        )


def same_responses(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
    """Group rankings of the same responses by different annotators, so that each response is computed only once."""
    groups: dict[tuple[tuple[int, ...], ...], list[Ranking]] = {}
    for ranking in rankings:
        groups.setdefault(tuple(map(tuple, ranking.sequences)), []).append(ranking)
    return list(groups.values())


def length_matched(comparison: Comparison, tokenizer: Tokenizer) -> list[bool]:
    """For each strict pair: whether its responses are of similar length, so that length does not decide."""
    sizes = [len(tokenizer.encode(response)) for response in comparison.responses]
    pairs = strict_pairs(comparison.ranks)
    return [abs(sizes[winner] - sizes[loser]) <= MATCHED * max(sizes[winner], sizes[loser]) for winner, loser in pairs]


def repeating(response: str) -> str:
    """The response with one to four neighbouring words said two to four times in a row, as a looping model does.

    A hash of the response decides which words and how often. An empty response stays empty.
    """
    words = response.split()
    if not words:
        return response
    start = int(unit_hash("start", response) * len(words))
    span = words[start : start + 1 + int(unit_hash("span", response) * 4)]
    times = 1 + int(unit_hash("times", response) * 3)  # in addition to the first
    return " ".join([*words[: start + len(span)], *span * times, *words[start + len(span) :]])
