"""Evaluation of one's own runs: rankings without a panel, reward models, the reward as the judge of who wins."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from world import World, named

from tutelage import cli
from tutelage.data.records import Comparison
from tutelage.evals.bench import EvaluateConfig
from tutelage.evals.evaluate import evaluate
from tutelage.evals.rankings import accuracy
from tutelage.evals.table import lines_of

transformers = pytest.importorskip("transformers")

CONFIG = EvaluateConfig(count=6, max_tokens=12, max_prompt=32, samples=6, best_of=(2,), dtype="fp32")
MARKERS = {"user": "<|user|>", "assistant": "<|assistant|>"}


def ids_of(tokenizer: Any, prompt: list[dict[str, str]], response: str) -> tuple[list[int], int]:
    """Prompt and response spelt out with transformers' tokenizer, and where the response begins."""
    text = "".join(f"{MARKERS[m['role']]}{m['content']}<|end|>" for m in prompt) + "<|assistant|>"
    start = tokenizer(text).input_ids
    return [*start, *tokenizer(f"{response}<|end|>").input_ids], len(start)


def logprob(model: Any, ids: list[int], start: int) -> float:
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
    return float(found.gather(1, torch.tensor(ids[start:])[:, None]).sum())


def by_hand(records: list[dict[str, Any]], score: Any) -> tuple[float, int]:
    """The share of strict pairs in the annotators' order, and how many there are."""
    right = []
    for record in records:
        scores = [score(record["prompt"], response) for response in record["responses"]]
        for i, one in enumerate(record["ranks"]):
            right += [scores[i] > scores[j] for j, other in enumerate(record["ranks"]) if one < other]
    return sum(right) / len(right), len(right)


@pytest.fixture(scope="module")
def few(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    lines = world.comparisons.read_text().splitlines()[:8]
    path = tmp_path_factory.mktemp("few") / "few.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path, [json.loads(line) for line in lines]


def test_accuracies_are_transformers(
    world: World, few: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reward model by its score, a model by its log ratio to SFT, without any panel; the table is printed, twice."""
    path, records = few
    words = ["evaluate", str(world.reward), str(world.base), "--sft", str(world.sft), "--comparisons", str(path)]
    words += ["--out", str(tmp_path / "out"), "--dtype", "fp32"]
    cli.main(words)
    told = capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["models"] == {} and found["panel"] is None
    rows = found["rankings"]
    assert [rows[name]["by"] for name in ("base", "reward")] == ["log ratio", "score"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(world.sft)
    judge = transformers.AutoModelForSequenceClassification.from_pretrained(world.reward)
    base, sft = (transformers.AutoModelForCausalLM.from_pretrained(run) for run in (world.base, world.sft))

    def score(prompt: list[dict[str, str]], response: str) -> float:
        with torch.no_grad():
            return float(judge(torch.tensor([ids_of(tokenizer, prompt, response)[0]])).logits)

    def ratio(prompt: list[dict[str, str]], response: str) -> float:
        ids, start = ids_of(tokenizer, prompt, response)
        return logprob(base, ids, start) - logprob(sft, ids, start)

    for name, theirs in (("reward", score), ("base", ratio)):
        assert (rows[name]["accuracy"], rows[name]["pairs"]) == pytest.approx(by_hand(records, theirs))
    table = [line for line in told.splitlines() if line.startswith(("  reward ", "  base ", "  model "))]
    assert len(table) == 3 and f"{rows['reward']['accuracy']:.1%} [" in table[2]
    capsys.readouterr()
    cli.main(words)
    again = capsys.readouterr().err.splitlines()
    assert "already finished" in again[0] and [f"  {line}" for line in again[1:]] == table


def test_without_a_reference_it_is_the_mean_log_probability(world: World, few: Any, tmp_path: Path) -> None:
    path, records = few
    evaluate((world.sft,), tmp_path / "out", comparisons=(path,), reward=named(world.reward), config=CONFIG)
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["rankings"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(world.sft)
    model = transformers.AutoModelForCausalLM.from_pretrained(world.sft)

    def mean(prompt: list[dict[str, str]], response: str) -> float:
        ids, start = ids_of(tokenizer, prompt, response)
        return logprob(model, ids, start) / (len(ids) - start)

    assert rows["sft"]["by"] == "mean log-probability" and list(rows) == ["sft", "reward"]
    assert rows["sft"]["accuracy"] == pytest.approx(by_hand(records, mean)[0])


def test_without_a_panel_the_reward_decides_who_wins(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recomputed from the responses in the file; the first run is what the others are compared with."""
    (tmp_path / "mine.py").write_text("def f(talks):\n    return [len(t[-1]['content']) for t in talks]\n")
    judge = f"{tmp_path / 'mine.py'}:f"
    evaluate((world.sft, world.base), tmp_path / "out", (world.prompts_test,), reward=(judge,), config=CONFIG)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    rows = report["models"]
    assert list(rows) == ["sft", "best-of-2", "base"]
    lengths = {name: [len(s["answers"][name]) for s in report["samples"]] for name in rows}
    for name in rows:
        wins = [(a > b) + 0.5 * (a == b) for a, b in zip(lengths[name], lengths["sft"], strict=True)]
        assert rows[name]["reward_win_rate"] == pytest.approx(sum(wins) / 6)
        assert rows[name]["reward"] == pytest.approx(sum(lengths[name]) / 6)
        assert rows[name]["gold"] is rows[name]["gold_win_rate"] is rows[name]["nats_under_base"] is None
        assert rows[name]["bits_per_byte"] is None
    told = capsys.readouterr().err
    assert "base preferred to sft by the reward" in told and "wins by reward" in told and "wins by gold" not in told


def test_prompts_alone(world: World, tmp_path: Path) -> None:
    """Neither reward nor panel: lengths, diversity and KL are measured all the same."""
    evaluate((world.sft, world.base), tmp_path / "out", (world.prompts_test,), config=replace(CONFIG, count=3))
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]
    assert list(rows) == ["sft", "base"]
    assert rows["base"]["reward"] is None and rows["base"]["reward_win_rate"] is None and rows["base"]["length"] > 0
    assert rows["sft"]["kl"] == 0.0 and rows["base"]["kl"] != 0.0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("SFT", "give --prompts to compare responses, --comparisons to compare how rankings are ordered, or both"),
        ("REWARD --prompts PROMPTS", "holds a reward model, which does not respond to prompts; give --comparisons"),
        ("REWARD --prompts PROMPTS --comparisons RANKS", "there is no language model to respond to --prompts"),
        ("SFT --comparisons RANKS --comparisons-share 0", "no ranking has a strict order"),
        ("SFT SFT --comparisons RANKS", "a run is given twice"),
    ],
)
def test_nothing_to_compare(
    line: str, said: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"SFT": world.sft, "REWARD": world.reward, "PROMPTS": world.prompts_test, "RANKS": world.comparisons}
    with pytest.raises(SystemExit):
        cli.main(["evaluate", *(str(files.get(word, word)) for word in line.split()), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_accuracy_by_hand() -> None:
    """Three pairs of one ranking, two right and one tied, and one of another, wrong: (1 + 1 + .5 + 0) / 4."""
    first = Comparison([{"role": "user", "content": "a"}], ["x", "y", "z"], [1, 2, 3], "me", "test")
    second = Comparison([{"role": "user", "content": "b"}], ["x", "y"], [2, 1], "me", "test")
    scores = [torch.tensor([5.0, 3.0, 3.0]), torch.tensor([1.0, 0.0])]
    found = accuracy([(first, []), (second, [])], scores, None, 0)
    assert found["accuracy"] == 0.625 and found["pairs"] == 4 and found["length_matched_accuracy"] is None
    low, high = found["accuracy_ci"]
    assert low == 0.0 and high == pytest.approx(2.5 / 3)


def test_the_table_leaves_out_what_nobody_has() -> None:
    rows = {
        "sft": {"reward": 0.5, "kl": 0.0, "length": 12.25, "gold": None, "reward_win_rate": 0.5},
        "best-of-4": {"reward": 1.5, "kl": 0.6363, "kl_is_bound": True, "length": 9.0, "reward_win_rate": 0.7,
                      "reward_win_rate_ci": [0.61, 0.789]},
    }  # fmt: skip
    assert lines_of({"models": rows}) == [
        "model          wins by reward  reward       KL  tokens",
        "sft                     50.0%   0.500     0.00    12.2",
        "best-of-4  70.0% [61.0, 78.9]   1.500  <= 0.64     9.0",
    ]
    assert lines_of({"models": {}}) == []
