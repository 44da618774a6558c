"""The simulated panel: rankings until people have ranked.

    (prompt, answer)  -> features -> utility   the gold score: no bias, no noise
    (prompt, answers) -> annotate -> ranks     what `simulated:1` to `simulated:3` would have said

Utility is a weighted sum of the rubric's features (`rubric.py`). An annotator weighs them by a taste of their own and
adds logistic noise, the same for the same annotator, prompt, answer and seed in every process; differences too small to
notice are ties. Weights, tastes and noise were calibrated once (benchmarks/calibrate_panel.py: about 73 % of the pairs
that two annotators both rank strictly are ranked alike, as among InstructGPT's labelers) and are frozen:
`constants_hash` stands beside every result that rests on them.
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
from tutelage.data.records import Messages, parse_json, read_text
from tutelage.data.rubric import WordPairs
from tutelage.data.splits import unit_hash
from tutelage.errors import InputError

ANNOTATORS = (1, 2, 3)
WEIGHTS = {"fit": 0.3, "asks": 1.0, "polite": 0.3, "repetition": -1.2, "length": 1.2, "toxic": -2.0}
TASTES = {  # multiplies the weights
    1: {"asks": 1.5, "fit": 0.8},  # likes to be asked
    2: {"polite": 2.0, "length": 1.3, "asks": 0.6},  # likes manners
    3: {"fit": 1.5, "repetition": 1.3, "polite": 0.5},  # likes substance
}
NOISE = 0.25  # scale of the logistic noise, calibrated on answers of the demo's SFT model
DEFAULT_RATING = 5  # what the data set's form held before anybody moved it
TIE = 0.05  # noisy utilities nearer than this get the same rank


class Panel:
    """Counted once on the training dialogues; immutable afterwards."""

    def __init__(self, pairs: WordPairs):
        self._pairs = pairs

    @classmethod
    def fit(cls, pairs: Iterable[tuple[str, str]]) -> "Panel":
        """Count words on (user turn, next assistant turn) of the training dialogues."""
        return cls(WordPairs.count(pairs))

    def features(self, prompt: Messages, answer: str) -> dict[str, float]:
        turn = prompt[-1]["content"]
        said = rubric.words(answer)
        fit = self._pairs.fit(turn, answer)
        earlier = [message["content"] for message in prompt if message["role"] == "assistant"]
        return {
            "fit": fit,
            "asks": rubric.asks(answer, fit),
            "polite": rubric.polite(answer, said),
            "repetition": rubric.repetition(answer, said, turn, earlier),
            "length": rubric.length(said),
            "toxic": rubric.toxic(said),
        }

    def utility(self, prompt: Messages, answer: str) -> float:
        """The gold score."""
        return _weighted(self.features(prompt, answer), {})

    def gold_preference(self, prompt: Messages, a: str, b: str) -> float:
        """1.0 if gold prefers a, 0.0 if b, 0.5 if it cannot tell."""
        difference = self.utility(prompt, a) - self.utility(prompt, b)
        return 0.5 if abs(difference) < 1e-9 else float(difference > 0)

    def annotate(self, annotator: int, prompt: Messages, answers: Sequence[str], seed: int) -> list[int]:
        """One annotator's ranks: 1 is best, ties are equal, the next rank follows without a gap."""
        context = json.dumps(prompt, sort_keys=True)
        liked = [
            _weighted(self.features(prompt, answer), TASTES[annotator])
            + NOISE * _logistic(unit_hash("annotator", str(seed), str(annotator), context, answer))
            for answer in answers
        ]
        return ranks(liked, TIE)

    def save(self, path: Path) -> None:
        """One JSON file: words and counts, and the hash of the constants they were made with."""
        content = {"constants": constants_hash(), **vars(self._pairs)}
        with atomic_write(path) as file:
            file.write(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Panel":
        content = parse_json(read_text(path), str(path))
        try:
            constants = content.pop("constants")
            pairs = WordPairs(**content)
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: not a panel; point to the panel.json that collecting the data wrote") from None
        if constants != constants_hash():
            raise InputError(f"{path}: made with other panel constants than this version's; collect the data again")
        return cls(pairs)


def ranks(scores: Sequence[float], tie: float) -> list[int]:
    """Ranks by falling score; a score less than `tie` below the best of its group shares the group's rank."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    given = [0] * len(scores)
    rank, best = 0, math.inf
    for i in order:
        if best - scores[i] >= tie:
            rank, best = rank + 1, scores[i]
        given[i] = rank
    return given


def rating_correlation(
    panel: Panel, rated: Iterable[tuple[Messages, dict[str, float]]], turns: int = 4
) -> dict[str, float]:
    """Spearman's rank correlation of mean utility with people's own ratings, and with their mean rating.

    One point is one rated conversation: the mean utility of its first `turns` assistant turns. A conversation that
    nobody rated carries the form's default, 5 in every field, and is left out.
    """
    scores: list[float] = []
    judged: dict[str, list[float]] = {}
    for messages, ratings in rated:
        answered = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i][:turns]
        if not answered or set(ratings.values()) == {DEFAULT_RATING}:
            continue
        scores.append(sum(panel.utility(messages[:i], messages[i]["content"]) for i in answered) / len(answered))
        for name, value in {**ratings, "mean": sum(ratings.values()) / len(ratings)}.items():
            judged.setdefault(name, []).append(value)
    correlations = {name: round(_spearman(scores, values), 4) for name, values in sorted(judged.items())}
    return {"conversations": len(scores), **correlations}


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's correlation of the mid-ranks; 0 where one side is constant."""
    a, b = _mid_ranks(x), _mid_ranks(y)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _mid_ranks(values: Sequence[float]) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def constants_hash() -> str:
    """SHA-256 of everything that decides a score besides the counts: weights, tastes, noise, word lists, thresholds."""
    modules = (globals(), vars(rubric))
    constants = {name: value for module in modules for name, value in module.items() if name.isupper()}
    return hashlib.sha256(json.dumps(constants, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value.pattern  # the rest are regular expressions


def _weighted(features: dict[str, float], taste: dict[str, float]) -> float:
    return sum(WEIGHTS[name] * taste.get(name, 1.0) * value for name, value in features.items())


def _logistic(u: float) -> float:
    """The logistic distribution's quantile; u is kept off the ends, where it is infinite."""
    u = min(max(u, 1e-9), 1 - 1e-9)
    return math.log(u / (1 - u))
