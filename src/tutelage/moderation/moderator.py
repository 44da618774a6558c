"""Moderation: which harmful categories a text falls into, and whether the policy lets it pass.

    texts -> term lists (built in and your own) and the trained classifier -> a verdict per text, in OpenAI's shape
    policy -> whether a verdict stops a prompt (input) or the model's text (output)

A term that is found scores 1. The classifier adds its probabilities, once there are enough flags to train it
(`training.py`). The verdict describes the text; only the policy decides what follows. By default few categories are
stopped: a person who speaks of self-harm needs an answer more than a refusal.
"""

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tutelage.errors import InputError
from tutelage.moderation.classifier import FlagClassifier
from tutelage.moderation.terms import BUILT_IN, CATEGORIES, TermList
from tutelage.options import Advanced

BLOCKED = ("hate/threatening", "illicit/violent", "self-harm/instructions", "sexual/minors")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModerationConfig:
    """What is moderated and which categories are blocked."""

    moderate: Literal["off", "input", "output", "both"] = "both"
    """What may be stopped: what people write (input), what the model writes (output), both, or nothing (off)."""
    blocked: Advanced[tuple[str, ...]] = BLOCKED
    """Categories (OpenAI's names) that stop a text. All others are only recorded."""
    threshold: Advanced[float] = 0.5
    """A category is flagged if its score is at least this (above 0, at most 1). A term scores 1."""
    terms: Path | None = None
    """Your own term list: `[category]` lines, one term per line, `[allow]` for exceptions. Reloaded when it changes."""
    builtin_terms: Advanced[bool] = True
    """Also use the English and Chinese term lists that come with tutelage."""
    classifier: Path | None = None
    """Folder of a classifier trained with `tutelage moderation`."""

    def __post_init__(self) -> None:
        if unknown := set(self.blocked) - set(CATEGORIES):
            raise InputError(f"--blocked {sorted(unknown)[0]}: no such category; choose from {', '.join(CATEGORIES)}")
        if not 0 < self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold}: must be above 0 and at most 1")


class Moderator:
    """The term lists and the classifier of one policy. Safe to call from several threads."""

    def __init__(self, config: ModerationConfig = ModerationConfig()):
        self.config = config
        self.classifier = FlagClassifier.load(config.classifier) if config.classifier else None
        self._lock = threading.Lock()
        self._stamp = self._changed()
        self._terms = self._read()

    @property
    def terms(self) -> TermList:
        """The term lists in force. Your own file is read again when it changes; an invalid one is ignored."""
        with self._lock:
            if self._stamp != (stamp := self._changed()):
                self._stamp = stamp
                try:
                    self._terms = self._read()
                except InputError as error:
                    log.warning("the changed term list is invalid, the old one stays in force: %s", error)
            return self._terms

    def check(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """One verdict per text, as OpenAI's: {flagged, categories: {name: bool}, category_scores: {name: 0..1}}."""
        terms = self.terms
        return [self.verdict(terms.categories(text), self.scores(text)) for text in texts]

    def scores(self, text: str) -> dict[str, float] | None:
        """The classifier's scores; None without a classifier."""
        return self.classifier.score(text) if self.classifier else None

    def verdict(self, termed: set[str], scores: dict[str, float] | None) -> dict[str, Any]:
        """A verdict from the categories of the terms found and the classifier's scores (None: not run)."""
        scores = dict.fromkeys(CATEGORIES, 0.0) | (scores or {}) | dict.fromkeys(termed, 1.0)
        categories = {name: scores[name] >= self.config.threshold for name in CATEGORIES}
        return {"flagged": any(categories.values()), "categories": categories, "category_scores": scores}

    def stops(self, side: Literal["input", "output"], verdict: dict[str, Any]) -> bool:
        """Whether the policy stops a text with this verdict on this side."""
        stopped = any(verdict["categories"][name] for name in self.config.blocked)
        return self.config.moderate in (side, "both") and stopped

    def _changed(self) -> tuple[int, int] | None:
        """Modification time and size of your own term list; None without one."""
        try:
            stat = os.stat(self.config.terms) if self.config.terms else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size) if stat else None

    def _read(self) -> TermList:
        own = (self.config.terms,) if self.config.terms else ()
        return TermList.read((*(BUILT_IN if self.config.builtin_terms else ()), *own))
