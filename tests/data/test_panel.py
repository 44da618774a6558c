"""The panel: PMI against its definition, what each feature rewards, and reproducible annotators."""

import json
import math
import random
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

from tutelage.data import panel as panel_module
from tutelage.data import rubric
from tutelage.data.panel import Panel
from tutelage.data.rubric import WordPairs
from tutelage.errors import InputError

TOPICS = {
    "dog": ["puppy", "bark", "leash", "walk"],
    "pizza": ["cheese", "oven", "slice", "hungry"],
    "exam": ["study", "grade", "teacher", "class"],
}


def dialogues(n: int = 3000) -> list[tuple[str, str]]:
    rng = random.Random(0)
    pairs = []
    for _ in range(n):
        topic = rng.choice(list(TOPICS))
        words = rng.sample(TOPICS[topic], 2)
        pairs.append((f"my {topic} story", f"the {words[0]} and the {words[1]} sound nice"))
    return pairs


@pytest.fixture(scope="module")
def panel() -> Panel:
    return Panel.fit(dialogues())


def ask(text: str):
    return [{"role": "user", "content": text}]


def test_fit_is_the_mean_of_smoothed_pmi():
    """Against the definition in plain Python: log of joint over expected, minus the word's mean over all turns."""
    pairs = dialogues()
    counted = WordPairs.count(pairs)
    turns = [(set(rubric.content_words(t)), set(rubric.content_words(a))) for t, a in pairs]
    k = rubric.SMOOTHING

    def pmi(here: str, there: str) -> float:
        joint = sum(here in t and there in a for t, a in turns)
        joint = joint if joint >= rubric.MIN_PAIR_COUNT else 0
        expected = sum(here in t for t, _ in turns) * sum(there in a for _, a in turns) / len(turns)
        return math.log((joint + k) / (expected + k))

    heard = {word: sum(word in t for t, _ in turns) for word in {w for t, _ in turns for w in t}}

    def usual(there: str) -> float:
        return sum(n * pmi(word, there) for word, n in heard.items()) / sum(heard.values())

    turn, answer = (
        "my dog story",
        "the puppy needs cheese and oven, a nice story",
    )  # "story" is copied, "needs" is in no answer
    known = ["puppy", "cheese", "oven", "nice"]
    total = sum(pmi(w, v) - usual(v) for w in ("my", "dog", "story") for v in known)
    expected = total / (3 * 5 + rubric.NEUTRAL_PAIRS) / rubric.FIT_SCALE
    assert counted.fit(turn, answer) == pytest.approx(max(-1, min(1, expected)), abs=1e-4)
    assert abs(expected) < 1  # otherwise the test would only check the bounds


def test_on_topic_beats_off_topic_and_a_sentence_for_all_turns_gets_no_fit(panel: Panel):
    assert panel.features(ask("my dog story"), "a puppy on a leash")["fit"] > 0.5
    assert panel.features(ask("my dog story"), "cheese from the oven")["fit"] < -0.5
    everywhere = [panel.features(ask(f"my {topic} story"), "sound nice")["fit"] for topic in TOPICS]
    assert max(map(abs, everywhere)) < 0.15


def test_parroting_earns_no_fit(panel: Panel):
    assert panel.features(ask("my dog story"), "dog dog dog")["fit"] == rubric.FIT_NOTHING


def test_a_short_question_on_the_topic_beats_worse_responses(panel: Panel):
    prompt = ask("my dog story")
    good = panel.utility(prompt, "nice, does the puppy bark on a walk?")
    for worse in (
        "ok",
        "",
        "what do you do?",
        "the puppy",
        "does the oven make cheese for a slice?",
        "puppy bark puppy bark puppy bark puppy bark?",
        "shut up, stupid puppy on a leash",
        "fuck the puppy, does it bark on a walk?",
        "the puppy and the leash and " + "then we went on and on and told each other more " * 5,
    ):
        assert good > panel.utility(prompt, worse) + 0.2, worse


@pytest.mark.parametrize(
    ("answer", "at_least"),
    [
        ("no no no no no", 1.0),
        ("i like it and i like it and i like it", 1.0),
        ("sooooooo good", 0.5),
        ("yes my dog is very old now", 1.0),  # the user's turn
        ("i had one too", 1.0),  # what the assistant said before
        ("that sounds like a good life for him", 0.0),
    ],
)
def test_repetition(answer: str, at_least: float):
    found = rubric.repetition(answer, rubric.words(answer), "well, yes my dog is very old now", ["I had one, too!"])
    assert found == pytest.approx(at_least) if at_least in (0.0, 0.5) else found >= 0.99


def test_features_stay_in_their_ranges(panel: Panel):
    rng = random.Random(1)
    ranges = {
        "fit": (-1, 1),
        "asks": (0, 1),
        "polite": (-1, 1),
        "repetition": (0, 1),
        "length": (0, 1),
        "toxic": (0, 1),
    }
    vocabulary = [w for words in TOPICS.values() for w in words] + [
        "you?",
        "the",
        "nice",
        "stupid",
        "!!!!!!",
        "你好",
        "fuck",
    ]
    for _ in range(500):
        answer = " ".join(rng.choices(vocabulary, k=rng.randrange(60)))
        features = panel.features(ask(" ".join(rng.choices(vocabulary, k=rng.randrange(1, 9)))), answer)
        assert features.keys() == ranges.keys()
        assert all(low <= features[name] <= high for name, (low, high) in ranges.items())


def test_gold_preference(panel: Panel):
    prompt = ask("my dog story")
    assert panel.gold_preference(prompt, "nice, does the puppy bark?", "ok") == 1.0
    assert panel.gold_preference(prompt, "ok", "nice, does the puppy bark?") == 0.0
    assert panel.gold_preference(prompt, "the same", "the same") == 0.5


def test_ranks_by_hand():
    assert panel_module.ranks([0.0, 1.0, 0.98, 0.93, 0.5], tie=0.05) == [4, 1, 1, 2, 3]
    assert panel_module.ranks([1.0, 1.0], tie=0.05) == [1, 1]


def test_annotators_are_stable_differ_and_do_not_see_the_order(panel: Panel):
    prompt = ask("my dog story")
    answers = [
        "a puppy on a leash",
        "cheese from the oven",
        "do you walk it?",
        "thanks, nice",
        "a grade from my teacher",
    ]
    given = [panel.annotate(a, prompt, answers, seed=s) for a in (1, 2, 3) for s in range(8)]
    assert given == [panel.annotate(a, prompt, answers, seed=s) for a in (1, 2, 3) for s in range(8)]
    assert len({tuple(g) for g in given}) > 3
    reverse = panel.annotate(1, prompt, answers[::-1], seed=0)
    assert reverse[::-1] == given[0]
    assert panel.annotate(2, prompt, ["same", "same"], seed=0) == [1, 1]


def test_annotators_are_the_same_in_every_process(panel: Panel, tmp_path: Path):
    panel.save(tmp_path / "panel.json")
    code = (
        "import sys; from pathlib import Path; from tutelage.data.panel import Panel, constants_hash; "
        "p = Panel.load(Path(sys.argv[1])); m = [{'role': 'user', 'content': 'my dog story'}]; "
        "print([p.annotate(a, m, ['puppy walk', 'ok', 'how are you?'], 0) for a in (1, 2, 3)], constants_hash())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "panel.json")],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    here = [panel.annotate(a, ask("my dog story"), ["puppy walk", "ok", "how are you?"], 0) for a in (1, 2, 3)]
    assert outputs == {f"{here} {panel_module.constants_hash()}\n"}


def test_noise_is_logistic():
    """The median is 0, and the upper quartile is log 3."""
    assert panel_module._logistic(0.5) == 0
    assert panel_module._logistic(0.75) == pytest.approx(math.log(3))
    assert math.isfinite(panel_module._logistic(0.0)) and math.isfinite(panel_module._logistic(1.0))


def test_save_and_load(panel: Panel, tmp_path: Path):
    path = tmp_path / "panel.json"
    panel.save(path)
    again = Panel.load(path)
    for answer in ("a puppy on a leash", "cheese?", ""):
        assert again.utility(ask("my dog story"), answer) == panel.utility(ask("my dog story"), answer)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "constants": "0"}))
    with pytest.raises(InputError, match="other panel constants"):
        Panel.load(path)
    for broken in ("{}", "[]", '{"constants": "0"}', '{"constants": "0", "more": 1}'):
        path.write_text(broken)
        with pytest.raises(InputError, match="not a panel"):
            Panel.load(path)


def test_constants_are_part_of_the_hash(monkeypatch: pytest.MonkeyPatch):
    before = panel_module.constants_hash()
    monkeypatch.setattr(panel_module, "NOISE", 0.5)
    noisy = panel_module.constants_hash()
    monkeypatch.setattr(rubric, "TOXIC", frozenset())
    assert len({before, noisy, panel_module.constants_hash()}) == 3


def test_spearman_against_the_textbook():
    """Without ties: 1 - 6 sum d^2 / (n (n^2 - 1)). With ties: Pearson of the mid-ranks, worked by hand."""
    x, y = [3.0, 1.0, 4.0, 1.5, 5.0], [2.0, 7.0, 1.0, 8.0, 3.0]
    rank = lambda v: [sorted(v).index(a) + 1 for a in v]  # noqa: E731
    d2 = sum((a - b) ** 2 for a, b in zip(rank(x), rank(y), strict=True))
    assert panel_module._spearman(x, y) == pytest.approx(1 - 6 * d2 / (5 * 24))
    assert panel_module._mid_ranks([10, 20, 20, 30]).tolist() == [1, 2.5, 2.5, 4]
    assert panel_module._spearman([1, 2], [5, 5]) == 0.0


def test_fast_enough_for_thousands_of_samples(panel: Panel):
    things = combinations(["leash", "oven", "grade", "cheese", "walk", "class", "bark"], 2)
    answers = [f"well i think the {a} and the {b} are nice, do you have a puppy?" for a, b in things] * 100
    prompt = ask("i have to tell you my long dog story about the exam and the pizza we had in class yesterday")
    start = time.process_time()
    for answer in answers:
        panel.utility(prompt, answer)
    assert len(answers) / (time.process_time() - start) > 2000  # measured: 9,000 per second on an idle machine
