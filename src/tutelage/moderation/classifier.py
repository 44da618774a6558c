"""How likely a text is one that people would flag: a linear model over hashed character n-grams.

    text -> folded -> windows -> n-grams of 1 to 4 characters, hashed into BUCKETS -> unit vector
         -> one logistic regression per category -> the highest probability over the windows

Hashing as in Weinberger et al. 2009. Characters rather than words, so that Chinese needs no word list and a misspelling
is still near. One window is short enough that a few lines of abuse do not drown in a long harmless text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tutelage.atomic import atomic_path
from tutelage.errors import InputError
from tutelage.moderation.terms import CATEGORIES, fold

BUCKET_BITS = 16
BUCKETS = 1 << BUCKET_BITS
SIZES = (1, 2, 3, 4)
WINDOW, STRIDE = 400, 200  # characters
FORMAT = "tutelage.flags.2"  # features and hash: weights learned under another name mean nothing here
FILE = "flags.safetensors"
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it permutes 64-bit numbers (2^64 over the golden ratio)
_MIX = np.uint64(0xD6E8FEB86659FD93)


def windows(text: str) -> list[str]:
    """The folded text in overlapping pieces; a short text is one piece."""
    folded = fold(text)
    starts = range(0, max(1, len(folded) - WINDOW + STRIDE), STRIDE)
    return [folded[start : start + WINDOW] for start in starts]


def buckets(folded: str) -> np.ndarray:
    """The buckets of a piece's n-grams, each once, ascending. A space at both ends shows where words begin and end."""
    points = np.frombuffer(f" {folded} ".encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    found = []
    hashed = np.zeros(len(points), dtype=np.uint64)
    for size in range(1, max(SIZES) + 1):
        hashed = hashed[: len(points) - size + 1] * _BASE + points[size - 1 :]
        if size in SIZES:
            mixed = (hashed ^ (hashed >> np.uint64(29))) * _MIX
            found.append((mixed >> np.uint64(64 - BUCKET_BITS)).astype(np.int64))
    return np.unique(np.concatenate(found))


@dataclass(frozen=True)
class FlagClassifier:
    """Trained weights. A category with too few flags has none, and scores 0."""

    categories: tuple[str, ...]  # the learned ones, a row of the weights each
    weights: np.ndarray  # (categories, BUCKETS) float32
    bias: np.ndarray  # (categories,) float32
    flags: int  # flagged texts it was trained on

    def score(self, text: str) -> dict[str, float]:
        """Probability per category of CATEGORIES."""
        best = np.zeros(len(self.categories))
        for window in windows(text):
            columns = buckets(window)
            logits = self.weights[:, columns].sum(1) / np.sqrt(len(columns)) + self.bias
            best = np.maximum(best, 1 / (1 + np.exp(-logits)))
        return dict.fromkeys(CATEGORIES, 0.0) | dict(zip(self.categories, best.tolist(), strict=True))

    def save(self, folder: Path) -> None:
        """Write flags.safetensors into the folder, whole or not at all."""
        about = {"format": FORMAT, "categories": self.categories, "flags": self.flags}
        with atomic_path(folder / FILE) as path:
            save_file({"weights": self.weights, "bias": self.bias}, path, metadata={"about": json.dumps(about)})

    @classmethod
    def load(cls, folder: Path) -> "FlagClassifier":
        """Read what `tutelage moderation` wrote. Raises InputError for anything else."""
        path = folder / FILE
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                if about.get("format") != FORMAT:
                    raise InputError(f"{path}: its format is {about.get('format')}, this version reads {FORMAT}")
                categories = tuple(about["categories"])
                loaded = cls(categories, file.get_tensor("weights"), file.get_tensor("bias"), about["flags"])
        except (OSError, SafetensorError) as error:
            line = "is no trained moderation classifier"
            raise InputError(f"{path}: {line} ({error}); make one with tutelage moderation") from None
        loaded._check(path)
        return loaded

    def _check(self, path: Path) -> None:
        shape = (len(self.categories), BUCKETS)
        if self.weights.shape != shape or self.bias.shape != shape[:1] or not set(self.categories) <= set(CATEGORIES):
            raise InputError(
                f"{path}: holds weights of {self.weights.shape} for {len(self.categories)} categories, {shape} is "
                "expected; train it again with tutelage moderation"
            )


def examples(texts: Sequence[str]) -> tuple[list[np.ndarray], list[int]]:
    """Every window of every text as buckets, and the index of the text it came from."""
    pieces = [(buckets(window), row) for row, text in enumerate(texts) for window in windows(text)]
    return [columns for columns, _ in pieces], [row for _, row in pieces]
