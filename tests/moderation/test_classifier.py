"""The moderation classifier: needs enough flags, is fitted to the optimum, and is equal after saving."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy.orm import Session

from tutelage.errors import InputError
from tutelage.moderation.classifier import BUCKETS, FILE, FlagClassifier, buckets, windows
from tutelage.moderation.moderator import ModerationConfig, Moderator
from tutelage.moderation.training import Flag, ModerationTrainingConfig, fit, merged, moderation
from tutelage.runs.run import read_run
from tutelage.store.consent import TEXT_VERSION
from tutelage.store.ids import new_id
from tutelage.store.tables import Consent, ModerationFlag, Setting, User
from tutelage.web.keys import open_store

RUDE = "you are a {} blockhead, {}"
KIND = "you are a {} friend, {}"
WORDS = "red blue green tall small quick slow old new odd kind wet dry warm cold".split()


def record(text: str, *flags: str, annotator: str = "ann") -> str:
    return json.dumps({"text": text, "flags": flags, "annotator": annotator, "source": "test"})


def write_flags(path: Path, count: int) -> Path:
    pairs = [(a, b) for a in WORDS for b in WORDS][:count]
    lines = [record(RUDE.format(*pair), "harassment") for pair in pairs] + [
        record(KIND.format(*pair)) for pair in pairs
    ]
    lines += [record("a rare thing " + word, "violence") for word in WORDS[:3]]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moderation")
    moderation(folder / "run", (write_flags(folder / "flags.jsonl", 210),))
    return folder / "run"


def test_it_learns_what_people_flag(trained: Path) -> None:
    results = read_run(trained)["results"]  # type: ignore[index]
    assert results["flagged"] == 213 and results["texts"] == 423
    assert results["heldout"].keys() == {"harassment"}  # three texts of violence are too few
    assert results["heldout"]["harassment"]["precision"] == results["heldout"]["harassment"]["recall"] == 1.0
    moderator = Moderator(ModerationConfig(builtin_terms=False, classifier=trained))
    rude, kind, hidden = moderator.check(
        ["What a BLOCKHEAD you are", "what a friend you are", "a quiet walk. " * 200 + RUDE.format("bad", "you")]
    )
    assert rude["categories"]["harassment"] and hidden["categories"]["harassment"]
    assert not kind["flagged"] and kind["category_scores"]["violence"] == 0.0


def test_it_is_off_until_there_are_200_flags(tmp_path: Path) -> None:
    flags = write_flags(tmp_path / "flags.jsonl", 196)
    with pytest.raises(InputError, match="199 flagged and 196 harmless texts: training needs 200 of each"):
        moderation(tmp_path / "run", (flags,))
    assert not (tmp_path / "run" / FILE).exists()


def test_the_fit_is_the_optimum() -> None:
    """The textbook gradient, computed text by text and bucket by bucket, is zero at the solution."""
    texts = [("bad dog", True), ("bad cat", True), ("good dog", False), ("good old cat", False), ("bad bird", False)]
    l2 = 0.1
    found = fit([Flag(t, frozenset(["hate"] if y else []), "a", "s") for t, y in texts], ("hate",), l2)
    gradient = {bucket: l2 * float(found.weights[0, bucket]) for bucket in range(BUCKETS) if found.weights[0, bucket]}
    for text, flagged in texts:
        columns = buckets(text).tolist()
        size = math.sqrt(len(columns))
        logit = sum(float(found.weights[0, c]) / size for c in columns) + float(found.bias[0])
        error = 1 / (1 + math.exp(-logit)) - flagged
        assert found.score(text)["hate"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
        for c in columns:
            gradient[c] = gradient.get(c, 0.0) + error / size
    assert len(gradient) > 40 and max(abs(g) for g in gradient.values()) < 1e-5


def test_every_short_run_of_characters_has_its_bucket() -> None:
    grams = {f" {'tea 茶'} "[i : i + n] for n in (1, 2, 3, 4) for i in range(8 - n)}
    alone = {gram: rolled(gram) for gram in grams}
    assert set(buckets("tea 茶").tolist()) == set(alone.values())
    assert len(set(alone.values())) > len(grams) - 2  # hardly any collisions


def rolled(gram: str) -> int:
    """The hash of one n-gram, with Python integers."""
    value = 0
    for character in gram:
        value = (value * 0x9E3779B97F4A7C15 + ord(character)) % 2**64
    return (((value ^ (value >> 29)) * 0xD6E8FEB86659FD93) % 2**64) >> 48


def test_windows_overlap_and_lose_nothing() -> None:
    text = "".join(chr(0xAC00 + i) for i in range(1_111))
    pieces = windows(text)
    assert all(text[i : i + 150] in "|".join(pieces) for i in range(len(text) - 150)) and max(map(len, pieces)) == 400
    assert windows("short") == ["short"] and windows("") == [""]


def test_people_are_counted_by_text() -> None:
    flags = [Flag("Bad!", frozenset(c), who, "s") for c, who in ((["hate"], "a"), (["hate", "sexual"], "b"), ([], "c"))]
    (one,) = merged(
        [
            *flags,
        ]
    )
    assert one.categories == {"hate"}


def test_what_is_no_classifier_is_refused(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(InputError, match="train one with tutelage moderation"):
        FlagClassifier.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"\x80\x04nonsense")
    with pytest.raises(InputError, match="not a trained moderation classifier"):
        FlagClassifier.load(tmp_path)
    weights = np.zeros((2, 8), dtype=np.float32)
    about = {"about": '{"format": "tutelage.flags.2", "categories": ["hate", "sexual"], "flags": 200}'}
    save_file({"weights": weights, "bias": weights[:, 0].copy()}, tmp_path / FILE, metadata=about)
    with pytest.raises(InputError, match="train it again"):
        FlagClassifier.load(tmp_path)
    again = FlagClassifier.load(trained)
    again.save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == (trained / FILE).read_bytes()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "x", "flags": ["rude"]}', 'line 1: "flags" must be a list of categories'),
        ('{"text": "x", "flags": "hate"}', 'line 1: "flags" must be a list'),
        ('{"flags": []}', "line 1"),
    ],
)
def test_faulty_flags_are_named_by_line(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "flags.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=complaint):
        moderation(tmp_path / "run", (tmp_path / "flags.jsonl",))


def consents(session: Session, who: str, train: bool) -> str:
    """Record a person's choice. Returns the id of the decision about training."""
    for kind, granted in (("record", True), ("train", train)):
        row = Consent(id=new_id("cns_"), user_id=who, kind=kind, granted=granted, text_version=TEXT_VERSION)
        session.add(row)
    return row.id


def test_flags_given_on_the_pages_train_only_with_consent(tmp_path: Path) -> None:
    """Of three people's 420 texts each, those of the one who consented first and never withdrew are used."""
    database, _ = open_store(tmp_path, "")
    with database.write() as session:
        session.add(Setting(key="recording", value={"allowed": True}))
        for who in ("usr_yes", "usr_no", "usr_later"):
            session.add(User(id=who, name=who))
            session.flush()
            given = None if who == "usr_later" else consents(session, who, True)
            for pair in [(a, b, who) for a in WORDS for b in WORDS][:210]:
                for template, categories in ((RUDE, ["harassment"]), (KIND, [])):
                    row = ModerationFlag(id=new_id("flg_"), user_id=who, text=template.format(*pair[:2]) + pair[2])
                    row.flagged, row.categories, row.consent_id = bool(categories), categories, given
                    session.add(row)
        consents(session, "usr_no", False)
        consents(session, "usr_later", True)
    database.close()
    moderation(tmp_path / "run", config=ModerationTrainingConfig(data=tmp_path))
    results = read_run(tmp_path / "run")["results"]  # type: ignore[index]
    assert (results["texts"], results["flagged"]) == (420, 210)
    assert not list(tmp_path.glob("*.jsonl"))  # no copy of what people wrote is left
    moderation(tmp_path / "run", config=ModerationTrainingConfig(data=tmp_path))  # finished: the same flags


def test_without_flags_there_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training data"):
        moderation(tmp_path / "run")
    with pytest.raises(InputError, match="contains no tutelage.db"):
        moderation(tmp_path / "run", config=ModerationTrainingConfig(data=tmp_path))
