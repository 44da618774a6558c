"""Which of the given preferences are trained on, which are held out, and which are left out and why.

    files -> Comparison -> RankingSets;  files -> Feedback -> ThumbSets

Left out are records that are too long for the model, rankings that prefer no response to another, and pairs of
conversations that do not belong together. Each kind is counted, and the first record of it is named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tutelage.data.rankings import Ranking, Thumb, encode_ranking, encode_thumb, held_out, teaches
from tutelage.data.records import Comparison, Feedback, read_comparisons, read_feedback
from tutelage.errors import InputError
from tutelage.text.tokenizer import Tokenizer

Preference = TypeVar("Preference", Comparison, Feedback)
Encoded = TypeVar("Encoded")


@dataclass
class LeftOut:
    """The records that are not used: how many of each kind, and a sentence about each kind that there is."""

    counts: dict[str, int] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)

    def add(self, kind: str, count: int, sentence: str) -> None:
        self.counts[kind] = count
        if count:
            self.sentences.append(sentence)

    def add_unpaired(self, complaints: Sequence[str]) -> None:
        """complaints: what `read_comparisons` and `read_feedback` say about pairs that are no pair."""
        first = complaints[0] if complaints else ""
        self.add("unpaired", len(complaints), f"left out {amount(len(complaints), 'pair')}; {first}")


@dataclass(frozen=True)
class RankingSets:
    """Comparisons and the same as token ids, one for one."""

    kept: list[Comparison]
    rankings: list[Ranking]
    heldout: list[Comparison]
    heldout_rankings: list[Ranking]
    left_out: LeftOut

    @property
    def counts(self) -> dict[str, int]:
        """The figures for run.json."""
        return {
            "rankings": len(self.kept),
            "rankings_held_out": len(self.heldout),
            "rankings_too_long": self.left_out.counts["too_long"],
            "rankings_tied": self.left_out.counts["tied"],
            "rankings_unpaired": self.left_out.counts["unpaired"],
        }


@dataclass(frozen=True)
class ThumbSets:
    """Thumbs as token ids."""

    kept: list[Thumb]
    heldout: list[Thumb]
    left_out: LeftOut

    @property
    def counts(self) -> dict[str, float]:
        """The figures for run.json."""
        return {
            "heldout_thumbs": len(self.heldout),
            "thumbs_too_long": self.left_out.counts["too_long"],
            "thumbs_tied": self.left_out.counts["tied"],
            "thumbs_unpaired": self.left_out.counts["unpaired"],
        }


def read_ranking_sets(
    paths: Sequence[Path], tokenizer: Tokenizer, context: int, share: float, stage: str
) -> RankingSets:
    """Read the comparisons for a stage. Raises InputError if none is left to train on."""
    left_out, unpaired = LeftOut(), list[str]()
    comparisons = read_comparisons(paths, unpaired)
    left_out.add_unpaired(unpaired)
    if not comparisons:
        raise InputError(unpaired[0])
    taught = [c for c in comparisons if teaches(c)]
    ties = f"{amount(len(comparisons) - len(taught), 'ranking')} without a preference between two different responses"
    if not taught:
        raise InputError(
            f"{stage}: no ranking with a strict order is left to train on, only {ties}; give more rankings"
        )
    first = next((f"; the first is {c.where}" for c in comparisons if not teaches(c)), "")
    left_out.add("tied", len(comparisons) - len(taught), f"left out {ties}{first}")
    encoded = [(c, encode_ranking(c, tokenizer)) for c in taught]
    fitting = fitting_in(
        encoded, lambda r: max(map(len, r.sequences)), context, left_out, f"{stage}: none of the rankings"
    )
    kept = [pair for pair in fitting if not held_out(pair[0], share)]
    heldout = [pair for pair in fitting if held_out(pair[0], share)]
    if not kept:
        raise InputError(all_held_out(stage, len(heldout), "ranking", share))
    return RankingSets(
        [c for c, _ in kept], [r for _, r in kept], [c for c, _ in heldout], [r for _, r in heldout], left_out
    )


def read_thumb_sets(paths: Sequence[Path], tokenizer: Tokenizer, context: int, share: float) -> ThumbSets:
    """Read the thumbs for KTO. Raises InputError if none is left to train on."""
    left_out, unpaired, tied = LeftOut(), list[str](), list[str]()
    feedback = read_feedback(paths, unpaired, tied)
    left_out.add_unpaired(unpaired)
    if not feedback:
        raise InputError(unpaired[0] if unpaired else "kto: all pairs have two equal responses; nothing can be learned")
    first = f"; the first is {tied[0]}" if tied else ""
    left_out.add("tied", len(tied), f"left out {amount(len(tied), 'pair')} of two equal responses{first}")
    encoded = [(f, encode_thumb(f, tokenizer)) for f in feedback]
    fitting = fitting_in(
        encoded, lambda t: len(t.prompt) + len(t.response), context, left_out, "kto: none of the thumbs"
    )
    kept = [thumb for record, thumb in fitting if not held_out(record, share)]
    heldout = [thumb for record, thumb in fitting if held_out(record, share)]
    if not kept:
        raise InputError(all_held_out("kto", len(heldout), "thumb", share))
    return ThumbSets(kept, heldout, left_out)


def fitting_in(
    encoded: Sequence[tuple[Preference, Encoded]],
    size: Callable[[Encoded], int],
    context: int,
    left_out: LeftOut,
    none_of: str,
) -> list[tuple[Preference, Encoded]]:
    """The records that fit the context; the others are left out. `none_of` starts the InputError if none fits."""
    fitting = [(record, ids) for record, ids in encoded if size(ids) <= context]
    long = [(record.where, size(ids)) for record, ids in encoded if size(ids) > context]
    if not fitting:
        where, least = min(long, key=lambda one: one[1])
        raise InputError(
            f"{none_of} ({len(long):,}) fits the model's context of {context} tokens; the shortest, {where}, needs "
            f"{least} with its prompt; shorten them"
        )
    first = f"the first, {long[0][0]}, needs {long[0][1]} with its prompt" if long else ""
    exceed = f"left out {len(long):,} of {len(encoded):,} records that exceed the model's context of {context} tokens"
    left_out.add("too_long", len(long), f"{exceed}; {first}")
    return fitting


def all_held_out(stage: str, count: int, noun: str, share: float) -> str:
    """The error if the held-out set took everything."""
    return (
        f"{stage}: the held-out set took the only {amount(count, noun)}, because a hash of the prompt decides "
        f"(--heldout {share:g}); give --heldout 0 to train on everything, or more {noun}s"
    )


def amount(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
