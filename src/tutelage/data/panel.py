"""The simulated panel: three simulated annotators that rank responses until people have ranked.

    (prompt, response)  -> features -> utility   the gold score, without bias or noise
    (prompt, responses) -> annotate -> ranks     the ranking by annotator `simulated:1`, `simulated:2` or `simulated:3`

The gold score is the panel's noise-free opinion of a response: a weighted sum of the rubric's features (`rubric.py`).
Each annotator has different weights and adds logistic noise, which depends only on annotator, prompt, response and
seed. Small differences become ties.
Weights and noise were calibrated once with benchmarks/calibrate_panel.py and are frozen. Of the pairs that two
annotators both rank strictly, they order about 73 % alike, as InstructGPT's labelers did. Every result that depends on
these constants records `constants_hash`.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.atomic import atomic_write
from tutelage.data import rubric
from tutelage.data.jsonl import parse_json, read_text
from tutelage.data.messages import Messages
from tutelage.data.rubric import WordPairs
from tutelage.data.splits import unit_hash
from tutelage.errors import InputError

ANNOTATORS = (1, 2, 3)
WEIGHTS = {"fit": 0.3, "asks": 1.0, "polite": 0.3, "repetition": -1.2, "length": 1.2, "toxic": -2.0}
TASTES = {  # factors on the weights, per annotator
    1: {"asks": 1.5, "fit": 0.8},  # prefers being asked
    2: {"polite": 2.0, "length": 1.3, "asks": 0.6},  # prefers politeness
    3: {"fit": 1.5, "repetition": 1.3, "polite": 0.5},  # prefers substance
}
NOISE = 0.25  # scale of the logistic noise, calibrated on responses of the demo's SFT model
DEFAULT_RATING = 5  # the default value in the data set's rating form
TIE = 0.05  # noisy utilities that differ by less than this are tied


class Panel:
    """Word counts of the training dialogues, and the gold scores and rankings that follow from them. Immutable."""

    def __init__(self, pairs: WordPairs):
        self._pairs = pairs

    @classmethod
    def fit(cls, pairs: Iterable[tuple[str, str]]) -> "Panel":
        """Count words in (user turn, next assistant turn) pairs of the training dialogues."""
        return cls(WordPairs.count(pairs))

    def features(self, prompt: Messages, response: str) -> dict[str, float]:
        """The rubric's features of a response, by name."""
        turn = prompt[-1]["content"]
        words = rubric.words(response)
        fit = self._pairs.fit(turn, response)
        earlier = [message["content"] for message in prompt if message["role"] == "assistant"]
        return {
            "fit": fit,
            "asks": rubric.asks(response, fit),
            "polite": rubric.polite(response, words),
            "repetition": rubric.repetition(response, words, turn, earlier),
            "length": rubric.length(words),
            "toxic": rubric.toxic(words),
        }

    def utility(self, prompt: Messages, response: str) -> float:
        """The gold score of a response."""
        return _weighted(self.features(prompt, response), {})

    def gold_preference(self, prompt: Messages, a: str, b: str) -> float:
        """1.0 if `a` has the higher gold score, 0.0 if `b` has, 0.5 if they are equal."""
        difference = self.utility(prompt, a) - self.utility(prompt, b)
        return 0.5 if abs(difference) < 1e-9 else float(difference > 0)

    def annotate(self, annotator: int, prompt: Messages, responses: Sequence[str], seed: int) -> list[int]:
        """One annotator's rank for each response. 1 is best, ties share a rank, and no rank is skipped."""
        context = json.dumps(prompt, sort_keys=True)
        utilities = [
            _weighted(self.features(prompt, response), TASTES[annotator])
            + NOISE * _logistic(unit_hash("annotator", str(seed), str(annotator), context, response))
            for response in responses
        ]
        return ranks(utilities, TIE)

    def save(self, path: Path) -> None:
        """Write one JSON file with the word counts and the hash of the constants in use."""
        content = {"constants": constants_hash(), **vars(self._pairs)}
        with atomic_write(path) as file:
            file.write(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Panel":
        """Raises InputError if the file is not a panel or was made with other constants."""
        content = parse_json(read_text(path), str(path))
        try:
            constants = content.pop("constants")
            pairs = WordPairs(**content)
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: not a panel; give the panel.json that `tutelage collect` wrote") from None
        if constants != constants_hash():
            raise InputError(
                f"{path}: made with other panel constants than this version uses; run `tutelage collect` again"
            )
        return cls(pairs)


def ranks(scores: Sequence[float], tie: float) -> list[int]:
    """Rank by descending score. A score less than `tie` below the best score of a rank shares that rank."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    assigned = [0] * len(scores)
    rank, best = 0, math.inf
    for i in order:
        if best - scores[i] >= tie:
            rank, best = rank + 1, scores[i]
        assigned[i] = rank
    return assigned


def rating_correlation(
    panel: Panel, rated: Iterable[tuple[Messages, dict[str, float]]], turns: int = 4
) -> dict[str, float]:
    """Spearman's rank correlation between the gold score and people's ratings: each rating, and their mean.

    Each rated conversation is one point, with the mean gold score of its first `turns` assistant turns. Conversations
    with 5 in every rating are left out: 5 is the form's default, so nobody rated them.
    """
    scores: list[float] = []
    values_by_rating: dict[str, list[float]] = {}
    for messages, ratings in rated:
        assistant_turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i][:turns]
        if not assistant_turns or set(ratings.values()) == {DEFAULT_RATING}:
            continue
        utilities = [panel.utility(messages[:i], messages[i]["content"]) for i in assistant_turns]
        scores.append(sum(utilities) / len(utilities))
        for name, value in {**ratings, "mean": sum(ratings.values()) / len(ratings)}.items():
            values_by_rating.setdefault(name, []).append(value)
    correlations = {name: round(_spearman(scores, values), 4) for name, values in sorted(values_by_rating.items())}
    return {"conversations": len(scores), **correlations}


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation of the mid-ranks; 0 if either side is constant."""
    a, b = _mid_ranks(x), _mid_ranks(y)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _mid_ranks(values: Sequence[float]) -> np.ndarray:
    """(N,) ranks from 1 in ascending order; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def constants_hash() -> str:
    """SHA-256 of every constant that affects a score: weights, noise, word lists and thresholds, but not word counts.

    The constants are the upper-case names of this module and of `rubric.py`, so renaming one changes the hash.
    """
    modules = (globals(), vars(rubric))
    constants = {name: value for module in modules for name, value in module.items() if name.isupper()}
    return hashlib.sha256(json.dumps(constants, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A frozenset or a regular expression as JSON."""
    return sorted(value) if isinstance(value, frozenset) else value.pattern


def _weighted(features: dict[str, float], taste: dict[str, float]) -> float:
    return sum(WEIGHTS[name] * taste.get(name, 1.0) * value for name, value in features.items())


def _logistic(u: float) -> float:
    """Quantile function of the logistic distribution. `u` is clipped away from 0 and 1, where it is infinite."""
    u = min(max(u, 1e-9), 1 - 1e-9)
    return math.log(u / (1 - u))
