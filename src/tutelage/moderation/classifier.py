"""The moderation classifier: how likely people would flag a text. A linear model over hashed character n-grams.

    text -> folded -> windows -> n-grams of 1 to 4 characters, hashed into BUCKETS -> unit vector
         -> one logistic regression per category -> the highest probability over the windows

Feature hashing follows Weinberger et al. 2009. Characters instead of words: Chinese needs no word segmentation, and a
misspelled word shares most n-grams with the right one. Windows are short, so that a few lines of abuse still count in a
long harmless text.
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
from tutelage.json_file import parse
from tutelage.kinds import TEXT, check_fields, listed, whole
from tutelage.moderation.terms import CATEGORIES, fold

BUCKET_BITS = 16
BUCKETS = 1 << BUCKET_BITS
SIZES = (1, 2, 3, 4)
WINDOW, STRIDE = 400, 200  # characters
FORMAT = "tutelage.flags.2"  # change it with the features or the hash: older weights do not fit new features
FILE = "flags.safetensors"
KINDS = {"format": TEXT, "categories": listed(TEXT), "flags": whole()}
_BASE = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio; odd, so multiplying by it permutes 64-bit integers
_MIX = np.uint64(0xD6E8FEB86659FD93)


def windows(text: str) -> list[str]:
    """The folded text in overlapping windows of WINDOW characters; a short text is one window."""
    folded = fold(text)
    starts = range(0, max(1, len(folded) - WINDOW + STRIDE), STRIDE)
    return [folded[start : start + WINDOW] for start in starts]


def buckets(folded: str) -> np.ndarray:
    """The distinct buckets of a window's n-grams, ascending. Spaces are added at both ends, to mark word boundaries."""
    points = np.frombuffer(f" {folded} ".encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    columns = []
    hashed = np.zeros(len(points), dtype=np.uint64)
    for size in range(1, max(SIZES) + 1):
        hashed = hashed[: len(points) - size + 1] * _BASE + points[size - 1 :]
        if size in SIZES:
            mixed = (hashed ^ (hashed >> np.uint64(29))) * _MIX
            columns.append((mixed >> np.uint64(64 - BUCKET_BITS)).astype(np.int64))
    return np.unique(np.concatenate(columns))


@dataclass(frozen=True)
class FlagClassifier:
    """Trained weights. A category with too few flags has no weights and scores 0."""

    categories: tuple[str, ...]  # the learned categories, one row of the weights each
    weights: np.ndarray  # (categories, BUCKETS) float32
    bias: np.ndarray  # (categories,) float32
    flags: int  # number of flagged training texts

    def score(self, text: str) -> dict[str, float]:
        """The probability of every category in CATEGORIES."""
        best = np.zeros(len(self.categories))
        for window in windows(text):
            columns = buckets(window)
            logits = self.weights[:, columns].sum(1) / np.sqrt(len(columns)) + self.bias
            best = np.maximum(best, 1 / (1 + np.exp(-logits)))
        return dict.fromkeys(CATEGORIES, 0.0) | dict(zip(self.categories, best.tolist(), strict=True))

    def save(self, folder: Path) -> None:
        """Write flags.safetensors into the folder, atomically."""
        about = {"format": FORMAT, "categories": self.categories, "flags": self.flags}
        with atomic_path(folder / FILE) as path:
            save_file({"weights": self.weights, "bias": self.bias}, path, metadata={"about": json.dumps(about)})

    @classmethod
    def load(cls, folder: Path) -> "FlagClassifier":
        """Read a classifier that `tutelage moderation` trained. Raises InputError for anything else."""
        path = folder / FILE
        try:
            with safe_open(path, framework="numpy") as file:
                about = parse((file.metadata() or {}).get("about", "{}"), str(path), "train it again")
                if not isinstance(about, dict):
                    raise InputError(f"{path}: not a trained moderation classifier; train one with tutelage moderation")
                if about.get("format") != FORMAT:
                    raise InputError(
                        f"{path}: has format {about.get('format')}, this version reads {FORMAT}; train it again with "
                        "tutelage moderation"
                    )
                check_fields(about, KINDS, str(path))
                categories = tuple(about.get("categories", ()))
                loaded = cls(categories, file.get_tensor("weights"), file.get_tensor("bias"), about.get("flags", 0))
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            problem = "not a trained moderation classifier"
            raise InputError(f"{path}: {problem} ({error}); train one with tutelage moderation") from None
        loaded._check(path)
        return loaded

    def _check(self, path: Path) -> None:
        shape = (len(self.categories), BUCKETS)
        floats = all(array.dtype == np.float32 and np.isfinite(array).all() for array in (self.weights, self.bias))
        if not floats:
            raise InputError(
                f"{path}: holds other than finite float32 numbers; train it again with tutelage moderation"
            )
        if self.weights.shape != shape or self.bias.shape != shape[:1] or not set(self.categories) <= set(CATEGORIES):
            raise InputError(
                f"{path}: weights have shape {self.weights.shape}, expected {shape} for {len(self.categories)} "
                "categories; train it again with tutelage moderation"
            )


def examples(texts: Sequence[str]) -> tuple[list[np.ndarray], list[int]]:
    """The buckets of every window of every text, and for each window the index of its text."""
    rows = [(buckets(window), row) for row, text in enumerate(texts) for window in windows(text)]
    return [columns for columns, _ in rows], [row for _, row in rows]
