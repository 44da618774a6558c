"""What people judged -> token ids to learn from, and which of it is kept from training.

    Comparison -> Ranking: K texts of prompt, answer and end of turn, with their ranks

The reward model and the stages that learn from preferences directly share this, the held-out prompts included: their
accuracies are on the same pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tutelage.data.records import Comparison, Feedback, Messages
from tutelage.data.splits import unit_hash
from tutelage.errors import InputError
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

MATCHED = 0.1  # answers whose lengths differ by at most this share count as length-matched


@dataclass(frozen=True)
class Ranking:
    """One comparison, encoded."""

    answers: list[list[int]]  # K times prompt, answer, end-of-turn
    ranks: list[int]
    prompt: int  # tokens of the prompt, which all of them begin with


def strict_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(winner, loser) positions of all pairs that are not tied: K(K-1)/2 of them if nothing is."""
    pairs = [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in combinations(range(len(ranks)), 2)]
    return [(winner, loser) for winner, loser in pairs if ranks[winner] != ranks[loser]]


def held_out(record: Comparison | Feedback, share: float) -> bool:
    """Decided by the conversation, so that no conversation is on both sides."""
    return unit_hash("reward", record.conversation or record.prompt[-1]["content"]) < share


def encode_ranking(comparison: Comparison, tokenizer: Tokenizer, context: int) -> Ranking:
    """Raises InputError when prompt and answer do not fit the context."""
    answers = [encode_response(comparison.prompt, response, tokenizer) for response in comparison.responses]
    check_fits(comparison, max(len(a) for a in answers), context)
    return Ranking(answers, comparison.ranks, len(encode_prompt(comparison.prompt, tokenizer)))


def encode_prompt(prompt: Messages, tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the answer begins: every text of `encode_response` with this prompt begins with them."""
    return encode_chat(tokenizer, prompt, add_generation_prompt=True).ids


def encode_response(prompt: Messages, answer: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of prompt and answer that end exactly at the end-of-turn token, where the score is read."""
    encoded = encode_chat(tokenizer, [*prompt, {"role": "assistant", "content": answer}])
    last = max(i for i, supervised in enumerate(encoded.supervised) if supervised)
    return encoded.ids[: last + 1]


def check_fits(record: Comparison | Feedback, size: int, context: int) -> None:
    if size > context:
        raise InputError(
            f"{record.where}: prompt and answer need {size} tokens, the model's context is {context}; "
            f"shorten the prompt that ends {record.prompt[-1]['content'][-40:]!r}"
        )


def same_responses(rankings: Sequence[Ranking]) -> list[list[Ranking]]:
    """Rankings of the same answers by several annotators belong into one step: their answers are run once."""
    groups: dict[tuple[tuple[int, ...], ...], list[Ranking]] = {}
    for ranking in rankings:
        groups.setdefault(tuple(map(tuple, ranking.answers)), []).append(ranking)
    return list(groups.values())


def length_matched(comparison: Comparison, tokenizer: Tokenizer) -> list[bool]:
    """For each of its strict pairs whether the answers are of like length: longer is not better there."""
    sizes = [len(tokenizer.encode(response)) for response in comparison.responses]
    pairs = strict_pairs(comparison.ranks)
    return [abs(sizes[winner] - sizes[loser]) <= MATCHED * max(sizes[winner], sizes[loser]) for winner, loser in pairs]
