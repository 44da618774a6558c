"""`tutelage moderation`: what people flagged -> the classifier that moderates beside the term lists.

    flags (JSONL) -> train and held-out texts -> logistic regressions, one per category -> flags.safetensors, run.json

A flag is one person's judgement of one text: {"text": ..., "flags": [categories, none if it is harmless], "annotator",
"source"}. Off until there are MIN_FLAGS flagged texts, and as many harmless ones: with fewer, what it learns is the
handful of texts it saw. A category is learned once MIN_PER_CATEGORY texts carry it.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sqlalchemy import select
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag

from tutelage.data.fields import labels, text_field
from tutelage.data.records import read_jsonl, write_jsonl
from tutelage.errors import InputError
from tutelage.moderation.classifier import BUCKETS, FlagClassifier, examples
from tutelage.moderation.terms import CATEGORIES, fold
from tutelage.runs.ending import Ending, Figure, command
from tutelage.runs.run import Run, RunConfig
from tutelage.store.consent import recording_of
from tutelage.store.tables import ModerationFlag
from tutelage.web.keys import open_store

MIN_FLAGS = 200
MIN_PER_CATEGORY = 20
HELDOUT = 5  # one text in five


@dataclass(frozen=True)
class Flag:
    """One text as a person judged it."""

    text: str
    categories: frozenset[str]  # empty: harmless
    annotator: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ModerationTrainingConfig(RunConfig):
    """How the classifier is fitted."""

    l2: float = 0.02
    """Weight of the squared weights beside the summed loss: more is a duller, surer classifier."""
    threshold: float = 0.5
    """Probability from which a text counts as flagged in the reported precision and recall."""
    data: Path | None = None
    """Folder of a server's own files (`tutelage serve --data`): also learn from the flags that people gave there."""
    database: str = ""
    """That server's database by its URL, if it is not the SQLite file in --data."""


def moderation(
    out: Path, flags: tuple[Path, ...] = (), config: ModerationTrainingConfig = ModerationTrainingConfig()
) -> None:
    """Train the moderation classifier on what people flagged, in files or on a server's pages.

    Example: tutelage moderation --data tutelage-data --out runs/moderation
    """
    with contextlib.ExitStack() as stack:
        if config.data:
            flags = (*flags, stack.enter_context(flags_of_server(config.data, config.database, out)))
        if not flags:
            raise InputError(
                "tutelage moderation: there is nothing to learn from; give --flags FILE.. or --data FOLDER"
            )
        train(out, flags, config)


def train(out: Path, flags: tuple[Path, ...], config: ModerationTrainingConfig) -> None:
    """Read, fit, measure on the held-out fifth, write."""
    with Run(out, stage="moderation", config=config, inputs={"flags": flags}) as run:
        if run.finished:
            return
        judged = merged(flag for path in flags for flag in read_flags(path))
        learned = learnable(judged)
        heldout = [flag for flag in judged if is_heldout(flag.text)]
        classifier = fit([flag for flag in judged if not is_heldout(flag.text)], learned, config.l2)
        classifier.save(out)
        counts = {"texts": len(judged), "flagged": sum(bool(flag.categories) for flag in judged)}
        run.progress.update(1.0)
        table = measure(classifier, heldout, config.threshold)
        run.finish(counts | {"heldout": table}, ending(out, counts, table))


def ending(out: Path, counts: dict[str, int], table: dict[str, dict[str, float | int]]) -> Ending:
    figures = [
        Figure(f"{category}: recall", row["recall"], note=f"precision {row['precision']:.1%}, {texts}", format=".1%")
        for category, row in table.items()
        for texts in [f"{row['texts']} flagged texts held out"]
    ]
    made = f"trained on {counts['texts']:,} texts, {counts['flagged']:,} of them flagged"
    return Ending(made, figures, next=[command("serve", "...", "--classifier", out)])


@contextlib.contextmanager
def flags_of_server(data: Path, url: str, out: Path) -> Iterator[Path]:
    """The flags of people who let them train models, in a file beside the run that is gone when it is made."""
    if not url and not (data / "tutelage.db").is_file():
        raise InputError(f"--data {data}: holds no tutelage.db; give the folder that tutelage serve was started with")
    database, _ = open_store(data, url)
    path = out.with_name(f"{out.name}.flags.jsonl")
    try:
        with database.read() as session:
            rows = [
                row
                for row in session.scalars(select(ModerationFlag).order_by(ModerationFlag.id))
                if recording_of(session, row.user_id).train
            ]
            write_jsonl(path, [{"text": row.text, "flags": row.categories, "annotator": row.user_id} for row in rows])
        yield path
    finally:
        path.unlink(missing_ok=True)
        database.close()


def read_flags(path: Path) -> list[Flag]:
    """The flags of one file, checked line by line."""
    found: list[Flag] = []
    for number, record in read_jsonl(path) if path.stat().st_size else ():
        where = f"{path}, line {number}"
        text, given = text_field(record, "text", where), record.get("flags")
        if not isinstance(given, list) or not set(map(str, given)) <= set(CATEGORIES):
            raise InputError(
                f'{where}: "flags" must be a list of categories ({", ".join(CATEGORIES)}), empty if harmless'
            )
        annotator, source = labels(record, where, "annotator", "source")
        found.append(Flag(text, frozenset(given), annotator, source))
    return found


def merged(flags: Iterable[Flag]) -> list[Flag]:
    """One flag per text: a category counts when at least half of those who judged the text named it."""
    votes: dict[str, list[Flag]] = {}
    for flag in flags:
        votes.setdefault(fold(flag.text), []).append(flag)
    return [_majority(group) for group in votes.values()]


def _majority(group: list[Flag]) -> Flag:
    named = Counter(category for flag in group for category in flag.categories)
    agreed = frozenset(category for category, count in named.items() if 2 * count >= len(group))
    return Flag(group[0].text, agreed, group[0].annotator, group[0].source)


def learnable(judged: list[Flag]) -> tuple[str, ...]:
    """The categories with enough flags. Raises InputError while there are too few flags to learn from at all."""
    flagged = sum(bool(flag.categories) for flag in judged)
    harmless = len(judged) - flagged
    if min(flagged, harmless) < MIN_FLAGS:
        raise InputError(
            f"{flagged} flagged and {harmless} harmless texts: the classifier stays off until there are {MIN_FLAGS} of "
            "each; until then the term lists moderate alone"
        )
    counts = Counter(category for flag in judged for category in flag.categories)
    learned = tuple(category for category in CATEGORIES if counts[category] >= MIN_PER_CATEGORY)
    if not learned:
        raise InputError(f"no category has {MIN_PER_CATEGORY} flagged texts; the most has {max(counts.values())}")
    return learned


def is_heldout(text: str) -> bool:
    """By the text itself: the same text is on the same side in every training, whoever flagged it."""
    return hashlib.sha256(fold(text).encode()).digest()[0] % HELDOUT == 0


def fit(flags: list[Flag], learned: tuple[str, ...], l2: float) -> FlagClassifier:
    """L2-regularised logistic regressions. The loss is convex: there is one solution, and no seed."""
    columns, rows = examples([flag.text for flag in flags])
    truth = torch.tensor([[category in flags[row].categories for category in learned] for row in rows]).double()
    weights = torch.zeros(BUCKETS, len(learned), dtype=torch.double, requires_grad=True)
    bias = torch.zeros(len(learned), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(weights, bias, columns, truth, l2)
        loss.backward()
        return loss

    optimizer.step(closure)
    count = sum(bool(flag.categories) for flag in flags)
    learned_weights = np.ascontiguousarray(weights.detach().T.float().numpy())
    return FlagClassifier(learned, learned_weights, bias.detach().float().numpy(), count)


def objective(weights: Tensor, bias: Tensor, columns: list[np.ndarray], truth: Tensor, l2: float) -> Tensor:
    """Summed cross-entropy of the windows, each a unit vector over its n-grams, and the penalty on the weights."""
    ids = torch.from_numpy(np.concatenate(columns))
    sizes = torch.tensor([len(c) for c in columns])
    per_id = sizes.double().rsqrt().repeat_interleave(sizes)
    offsets = sizes.cumsum(0) - sizes
    logits = embedding_bag(ids, weights, offsets, mode="sum", per_sample_weights=per_id) + bias
    return binary_cross_entropy_with_logits(logits, truth, reduction="sum") + l2 / 2 * weights.square().sum()


def measure(classifier: FlagClassifier, heldout: list[Flag], threshold: float) -> dict[str, dict[str, float | int]]:
    """Per learned category on the held-out texts: how many carry it, precision and recall at the threshold."""
    scores = [classifier.score(flag.text) for flag in heldout]
    table = {}
    for category in classifier.categories:
        truth = np.array([category in flag.categories for flag in heldout], dtype=bool)
        guess = np.array([score[category] >= threshold for score in scores], dtype=bool)
        hits = int((truth & guess).sum())
        table[category] = {
            "texts": int(truth.sum()),
            "precision": round(hits / max(1, int(guess.sum())), 3),
            "recall": round(hits / max(1, int(truth.sum())), 3),
        }
    return table
