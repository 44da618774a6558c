"""Preferences -> token ids to train on, and the held-out set.

    Comparison -> Ranking: K token sequences (prompt, response, end of turn) and their ranks
    Feedback   -> Thumb: a prompt, a response, and whether it was liked

The reward model and the stages that train on preferences directly share this module, and thus the held-out set, so
their accuracies are measured on the same pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tutelage.data.messages import Messages
from tutelage.data.records import Comparison, Feedback
from tutelage.data.splits import unit_hash
from tutelage.errors import located
from tutelage.text.chat import encode_answer, encode_chat
from tutelage.text.tokenizer import Tokenizer

MATCHED = 0.1  # responses are length-matched if their lengths differ by at most this share of the longer


@dataclass(frozen=True)
class Ranking:
    """A comparison as token ids."""

    sequences: list[list[int]]  # K sequences: prompt, response, end-of-turn token
    ranks: list[int]
    prompt_length: int  # number of tokens in the prompt, with which every sequence starts


@dataclass(frozen=True)
class Thumb:
    """One response with its thumb, as token ids."""

    prompt: list[int]
    response: list[int]  # end of turn included
    liked: bool


def strict_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """(winner, loser) indices of all pairs that are not tied: K(K-1)/2 pairs if there are no ties."""
    pairs = [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in combinations(range(len(ranks)), 2)]
    return [(winner, loser) for winner, loser in pairs if ranks[winner] != ranks[loser]]


def held_out(record: Comparison | Feedback, share: float) -> bool:
    """Whether a record is held out. A hash of its conversation decides, so no conversation is in both sets."""
    return unit_hash("reward", record.conversation or record.prompt[-1]["content"]) < share


def teaches(comparison: Comparison) -> bool:
    """Whether one of two different responses is ranked above the other; otherwise there is nothing to learn."""
    texts = comparison.responses
    return any(texts[winner] != texts[loser] for winner, loser in strict_pairs(comparison.ranks))


def encode_ranking(comparison: Comparison, tokenizer: Tokenizer) -> Ranking:
    """Raises InputError, with file and line, if the chat template cannot render the conversation."""
    with located(comparison.where):
        sequences = [encode_response(comparison.prompt, response, tokenizer) for response in comparison.responses]
        return Ranking(sequences, comparison.ranks, len(encode_prompt(comparison.prompt, tokenizer)))


def encode_thumb(feedback: Feedback, tokenizer: Tokenizer) -> Thumb:
    """Raises InputError as `encode_ranking` does."""
    with located(feedback.where):
        prompt = encode_prompt(feedback.prompt, tokenizer)
        whole = encode_response(feedback.prompt, feedback.response, tokenizer)
        return Thumb(prompt, whole[len(prompt) :], feedback.thumb > 0)


def encode_prompt(prompt: Messages, tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the response begins. Every `encode_response` for this prompt starts with them."""
    return encode_chat(tokenizer, prompt, add_generation_prompt=True).ids


def encode_response(prompt: Messages, response: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of prompt and response. The last one is the end-of-turn token, at which the score is read."""
    return encode_answer(tokenizer, [*prompt, {"role": "assistant", "content": response}]).ids


def after_turn(tokenizer: Tokenizer) -> list[int]:
    """What the chat template writes after an answer's end of turn, such as a newline; often nothing."""
    prompt: Messages = [{"role": "user", "content": "a"}]
    whole = encode_chat(tokenizer, [*prompt, {"role": "assistant", "content": "a"}]).ids
    return whole[len(encode_response(prompt, "a", tokenizer)) :]


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
