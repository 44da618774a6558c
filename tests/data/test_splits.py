"""Splits: no person is in two of them, in any process, and questions are compared without punctuation."""

import json
import random
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from tutelage.data import splits


def village(seed: int = 0) -> list[tuple[str, str]]:
    """Conversations inside 60 families of 6 people, and some with one person who knows everybody."""
    rng = random.Random(seed)
    pairs = []
    for family in range(60):
        people = [f"family {family} person {i}" for i in range(6)]
        pairs += [tuple(rng.sample(people, 2)) for _ in range(20)]
    return pairs + [("everybody's friend", rng.choice(rng.choice(pairs))) for _ in range(60)]


def check_nobody_crosses(pairs, sides):
    seen: dict[str, set[str]] = {}
    for pair, side in zip(pairs, sides, strict=True):
        if side != "crossing":
            for person in pair:
                seen.setdefault(person, set()).add(side)
    assert all(len(s) == 1 for s in seen.values())


def test_nobody_is_in_two_splits():
    pairs = village()
    sides = splits.split_people(pairs)
    check_nobody_crosses(pairs, sides)
    assert sides.count("test") >= sides.count("valid") > 0
    assert sides.count("crossing") <= 0.04 * len(pairs)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda p: p[0] != p[1]), min_size=1))
def test_nobody_is_in_two_splits_of_any_graph(edges):
    pairs = [(str(a), str(b)) for a, b in edges]
    check_nobody_crosses(pairs, splits.split_people(pairs))


def test_the_same_in_every_process():
    """Python orders sets of strings by a seed of the process, which must not affect the splits."""
    pairs = village()
    code = "import json, sys; from tutelage.data.splits import split_people; print(split_people(json.load(sys.stdin)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(pairs),
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{splits.split_people(pairs)}\n"}


def test_questions_that_are_the_same():
    for same in ("Who are you?", "who are  you", "WHO ARE YOU ?!", "Ｗｈｏ are you？"):
        assert splits.normalised(same) == "whoareyou"
    assert splits.normalised("你是谁？") == splits.normalised("你 是 谁")
    assert splits.normalised("?!") == "?!"


def test_shares_of_questions():
    sides = [splits.split_question(f"question number {i}") for i in range(20_000)]
    assert abs(sides.count("test") / 20_000 - splits.QUESTION_TEST) < 0.005
    assert abs(sides.count("valid") / 20_000 - splits.QUESTION_VALID) < 0.005


def test_hash_is_pinned():
    """Other processes, machines and versions must agree on it: BLAKE2b-56 of "a", U+001F, "b", over 2^56."""
    import hashlib

    expected = int(hashlib.blake2b(b"a\x1fb", digest_size=7).hexdigest(), 16) / 2**56
    assert splits.unit_hash("a", "b") == expected
