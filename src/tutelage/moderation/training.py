"""`tutelage moderation`: train the moderation classifier, which works alongside the term lists, on people's flags.

    flags (JSONL) -> training and held-out texts -> one logistic regression per category -> flags.safetensors, run.json

A flag is one person's label of one text: {"text": ..., "flags": [categories; empty if harmless], "annotator",
"source"}. Training needs at least MIN_FLAGS flagged texts and as many harmless ones; with fewer it would only memorise
them. A category is learned if at least MIN_PER_CATEGORY texts carry it.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from sqlalchemy import select
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag

from tutelage.data.fields import labels, text_field
from tutelage.data.jsonl import read_jsonl, write_jsonl
from tutelage.errors import InputError
from tutelage.moderation.classifier import BUCKETS, FlagClassifier, examples
from tutelage.moderation.terms import CATEGORIES, fold
from tutelage.options import Advanced, NonNegative, Range
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
    """One text as a person labelled it."""

    text: str
    categories: frozenset[str]  # empty: harmless
    annotator: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ModerationTrainingConfig(RunConfig):
    """How the classifier is trained."""

    l2: Advanced[NonNegative] = 0.02
    """Coefficient of the L2 penalty, which is added to the summed loss. Larger values regularise more."""
    threshold: Advanced[Annotated[float, Range(above=0, most=1)]] = 0.5
    """Probability from which a text counts as flagged in the reported precision and recall."""
    data: Path | None = None
    """Data folder of a server (`tutelage serve --data`). Its users' flags are also used, if they consented."""
    database: Advanced[str] = ""
    """URL of that server's database, if it is not the SQLite file in --data."""


def moderation(
    out: Path, flags: tuple[Path, ...] = (), config: ModerationTrainingConfig = ModerationTrainingConfig()
) -> None:
    """Train the moderation classifier on flags, from files or from a server's chat page.

    out: Run directory to write.
    flags: JSONL files with flags: a text and its categories each. Give --flags, --data or both.

    Example: tutelage moderation --data tutelage-data --out runs/moderation
    """
    with contextlib.ExitStack() as stack:
        if config.data:
            flags = (*flags, stack.enter_context(flags_of_server(config.data, config.database, out)))
        if not flags:
            raise InputError("tutelage moderation: no training data; give --flags FILE.. or --data FOLDER")
        train(out, flags, config)


def train(out: Path, flags: tuple[Path, ...], config: ModerationTrainingConfig) -> None:
    """Read the flags, fit the classifier, save it, and measure it on the held-out fifth."""
    with Run(out, stage="moderation", config=config, inputs={"flags": flags}) as run:
        if run.finished:
            return
        labelled = merged(flag for path in flags for flag in read_flags(path))
        learned = learnable(labelled)
        heldout = [flag for flag in labelled if is_heldout(flag.text)]
        classifier = fit([flag for flag in labelled if not is_heldout(flag.text)], learned, config.l2)
        classifier.save(out)
        counts = {"texts": len(labelled), "flagged": sum(bool(flag.categories) for flag in labelled)}
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
    """The flags of people who consent to training, in a temporary file beside the run's folder."""
    if not url and not (data / "tutelage.db").is_file():
        raise InputError(f"--data {data}: contains no tutelage.db; give the data folder of tutelage serve")
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
    """The flags of one file. Raises InputError that names an invalid line."""
    flags: list[Flag] = []
    for number, record in read_jsonl(path) if path.stat().st_size else ():
        where = f"{path}, line {number}"
        text, categories = text_field(record, "text", where), record.get("flags")
        if not isinstance(categories, list) or not set(map(str, categories)) <= set(CATEGORIES):
            raise InputError(
                f'{where}: "flags" must be a list of categories ({", ".join(CATEGORIES)}), empty if harmless'
            )
        annotator, source = labels(record, where, "annotator", "source")
        flags.append(Flag(text, frozenset(categories), annotator, source))
    return flags


def merged(flags: Iterable[Flag]) -> list[Flag]:
    """One flag per text: a category counts if at least half of the text's annotators named it."""
    votes: dict[str, list[Flag]] = {}
    for flag in flags:
        votes.setdefault(fold(flag.text), []).append(flag)
    return [_majority(group) for group in votes.values()]


def _majority(group: list[Flag]) -> Flag:
    named = Counter(category for flag in group for category in flag.categories)
    agreed = frozenset(category for category, count in named.items() if 2 * count >= len(group))
    return Flag(group[0].text, agreed, group[0].annotator, group[0].source)


def learnable(labelled: list[Flag]) -> tuple[str, ...]:
    """The categories with enough flags. Raises InputError if there are too few texts, or no such category."""
    flagged = sum(bool(flag.categories) for flag in labelled)
    harmless = len(labelled) - flagged
    if min(flagged, harmless) < MIN_FLAGS:
        raise InputError(
            f"{flagged} flagged and {harmless} harmless texts: training needs {MIN_FLAGS} of each; until then moderate "
            "with the term lists alone"
        )
    counts = Counter(category for flag in labelled for category in flag.categories)
    learned = tuple(category for category in CATEGORIES if counts[category] >= MIN_PER_CATEGORY)
    if not learned:
        most = max(counts.values())
        raise InputError(f"no category has {MIN_PER_CATEGORY} flagged texts (most: {most}); collect more flags")
    return learned


def is_heldout(text: str) -> bool:
    """Whether a text belongs to the held-out set. Decided by its hash, so it is the same in every training run."""
    return hashlib.sha256(fold(text).encode()).digest()[0] % HELDOUT == 0


def fit(flags: list[Flag], learned: tuple[str, ...], l2: float) -> FlagClassifier:
    """Fit L2-regularised logistic regressions. The loss is convex with one minimum, so no seed is needed."""
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
    """The summed cross-entropy of the windows (unit vectors over their n-grams) plus the L2 penalty on the weights."""
    ids = torch.from_numpy(np.concatenate(columns))
    sizes = torch.tensor([len(c) for c in columns])
    per_id = sizes.double().rsqrt().repeat_interleave(sizes)
    offsets = sizes.cumsum(0) - sizes
    logits = embedding_bag(ids, weights, offsets, mode="sum", per_sample_weights=per_id) + bias
    return binary_cross_entropy_with_logits(logits, truth, reduction="sum") + l2 / 2 * weights.square().sum()


def measure(classifier: FlagClassifier, heldout: list[Flag], threshold: float) -> dict[str, dict[str, float | int]]:
    """Per learned category, on the held-out texts: how many carry it, precision and recall at the threshold."""
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
