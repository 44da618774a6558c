"""Is this text harmful, in which way, and may it pass?

    texts -> term lists (built in, the administrator's) and the trained classifier -> a verdict per text, OpenAI's shape
    policy -> which verdicts stop a message on its way in or an answer on its way out

A term counts as certain (score 1); the classifier is asked beside it, once people have flagged enough to train it
(`training.py`). A verdict says what is in a text; the policy alone says what is done about it: by default little
is stopped, since a person who speaks of harming himself needs an answer more than a refusal.
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

BLOCKED = ("hate/threatening", "illicit/violent", "self-harm/instructions", "sexual/minors")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModerationConfig:
    """What is moderated, with what, and what it leads to."""

    moderate: Literal["off", "input", "output", "both"] = "both"
    """Which side may be stopped: what people write, what the model answers, both or neither."""
    blocked: tuple[str, ...] = BLOCKED
    """Categories (OpenAI's names) that stop a text; the others are only noted with it."""
    threshold: float = 0.5
    """Score from which a category counts as flagged; a term scores 1."""
    terms: Path | None = None
    """Your own term list, read again when it changes: `[category]` lines, a term a line, `[allow]` for exceptions."""
    builtin_terms: bool = True
    """Also use the lists that come with tutelage (English, Chinese)."""
    classifier: Path | None = None
    """A run of `tutelage moderation`."""

    def __post_init__(self) -> None:
        if unknown := set(self.blocked) - set(CATEGORIES):
            raise InputError(f"--blocked {sorted(unknown)[0]}: no such category; there are {', '.join(CATEGORIES)}")
        if not 0 < self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold}: must be above 0 and at most 1")


class Moderator:
    """The lists and the classifier of one policy. Safe to call from several threads."""

    def __init__(self, config: ModerationConfig = ModerationConfig()):
        self.config = config
        self.classifier = FlagClassifier.load(config.classifier) if config.classifier else None
        self._lock = threading.Lock()
        self._stamp = self._changed()
        self._terms = self._read()

    @property
    def terms(self) -> TermList:
        """The lists in force. The administrator's file is read again when it has changed; a faulty one is not taken."""
        with self._lock:
            if self._stamp != (stamp := self._changed()):
                self._stamp = stamp
                try:
                    self._terms = self._read()
                except InputError as error:
                    log.warning("the term list stays as it was: %s", error)
            return self._terms

    def check(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """One verdict per text: {flagged, categories: {name: bool}, category_scores: {name: 0..1}}, as OpenAI's."""
        terms = self.terms
        return [self.verdict(terms.categories(text), self.scores(text)) for text in texts]

    def scores(self, text: str) -> dict[str, float] | None:
        """The classifier's scores; None without one."""
        return self.classifier.score(text) if self.classifier else None

    def verdict(self, termed: set[str], scores: dict[str, float] | None) -> dict[str, Any]:
        """What the categories of the terms found and the classifier's scores, if it was asked, come to."""
        scores = dict.fromkeys(CATEGORIES, 0.0) | (scores or {}) | dict.fromkeys(termed, 1.0)
        categories = {name: scores[name] >= self.config.threshold for name in CATEGORIES}
        return {"flagged": any(categories.values()), "categories": categories, "category_scores": scores}

    def stops(self, side: Literal["input", "output"], verdict: dict[str, Any]) -> bool:
        """Whether the policy lets no such text pass on this side."""
        stopped = any(verdict["categories"][name] for name in self.config.blocked)
        return self.config.moderate in (side, "both") and stopped

    def _changed(self) -> tuple[int, int] | None:
        """Time and size of the administrator's file; None without one."""
        try:
            found = os.stat(self.config.terms) if self.config.terms else None
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size) if found else None

    def _read(self) -> TermList:
        own = (self.config.terms,) if self.config.terms else ()
        return TermList.read((*(BUILT_IN if self.config.builtin_terms else ()), *own))
