"""Rankings in which degenerate responses lose, to train a reward model against them (--reject-degenerate).

    rankings       -> the same, each with a degenerate response as its worst   (`with_losers`)
    demonstrations -> one ranking each: the demonstration, then a degenerate response to the same prompt

A policy's responses in the rankings and people's demonstrations read differently, so each needs its own losers: with
losers in the rankings alone, repeated demonstrations still won (LOG.md).
"""

from collections.abc import Sequence

from tutelage.data.degenerate import degenerate_response
from tutelage.data.messages import Messages
from tutelage.data.rankings import Ranking, encode_ranking, encode_response
from tutelage.data.records import Comparison
from tutelage.text.tokenizer import Tokenizer


def with_losers(
    comparisons: Sequence[Comparison], rankings: Sequence[Ranking], tokenizer: Tokenizer, context: int, salt: str
) -> list[Ranking]:
    """Each ranking with one more response, a degenerate one, worse than all others. The lists are one for one."""
    losers = [degenerate_response(comparison, salt) for comparison in comparisons]
    encoded = [encode_response(c.prompt, loser, tokenizer) for c, loser in zip(comparisons, losers, strict=True)]
    return [with_loser(ranking, loser, context) for ranking, loser in zip(rankings, encoded, strict=True)]


def with_loser(ranking: Ranking, loser: list[int], context: int) -> Ranking:
    """Unchanged if the loser is one of its responses or does not fit."""
    if loser in ranking.sequences or len(loser) > context:
        return ranking
    return Ranking([*ranking.sequences, loser], [*ranking.ranks, max(ranking.ranks) + 1], ranking.prompt_length)


def demonstrations_first(
    demonstrations: Sequence[Messages], tokenizer: Tokenizer, context: int, salt: str
) -> list[Ranking]:
    """One ranking of two for each conversation that ends with a demonstration; none if the loser does not fit."""
    alone = [Comparison(c[:-1], [c[-1]["content"]], [1], annotator="", source="demonstration") for c in demonstrations]
    told = [encode_ranking(comparison, tokenizer) for comparison in alone]
    return [r for r in with_losers(alone, told, tokenizer, context, salt) if len(r.ranks) == 2]
