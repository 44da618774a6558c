"""Best-of-n as a stage: whose answers are kept, that `tutelage sft` takes them, and its figures."""

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import transformers
from ppo_bench import scorer_with
from test_reward import Theirs
from world import SFT, World, interrupted, named, results

from tutelage.errors import InputError
from tutelage.stages import best_of_n as stage
from tutelage.stages.best_of_n import BestOfNConfig, best_of_n
from tutelage.stages.sft import sft

CONFIG = BestOfNConfig(count=12, samples=5, max_tokens=24, max_prompt=32, dtype="fp32")


def run(world: World, out: Path, config: BestOfNConfig = CONFIG, **given: Any) -> list[dict[str, Any]]:
    inputs = {"policy": world.sft, "reward": world.reward, "prompts": (world.prompts,)} | given
    best_of_n(out=out, config=config, **inputs | {"reward": named(inputs["reward"])})
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture
def sampled_groups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], Any]]:
    """Every prompt that is sampled for, with its answers."""
    seen: list[tuple[list[int], Any]] = []
    original = stage.generate

    def generate(model: Any, asked: Any, *given: Any) -> Any:
        groups = original(model, asked, *given)
        seen.extend(zip(asked, groups, strict=True))
        return groups

    monkeypatch.setattr(stage, "generate", generate)
    return seen


def test_the_favourite_of_transformers_is_kept(
    world: World, tmp_path: Path, sampled_groups: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """And the curve is the mean over every choice of n of the best score, by another library's scores."""
    records = run(world, tmp_path / "best.jsonl")
    theirs = Theirs(world.reward)
    tokenizer = transformers.AutoTokenizer.from_pretrained(world.sft)
    kept, all_scores = [], []
    for asked, answers in sampled_groups:
        assert len(answers) == 5
        raw = [theirs.score([*asked, *a.ids]) for a in answers]
        whole = [score for score, answer in zip(raw, answers, strict=True) if answer.ended]
        most = sum(whole) / len(whole) if whole else math.inf
        scores = [s if a.ended else min(s, most) - 1 for s, a in zip(raw, answers, strict=True)]
        all_scores.append(scores)
        best = max(range(5), key=scores.__getitem__)
        if answers[best].ended:
            kept.append((asked, tokenizer.decode(answers[best].ids[:-1])))
    said = [(theirs.ids(r["messages"][0]["content"], "")[:-1], r["messages"][1]["content"]) for r in records]
    assert said == kept and 0 < len(kept) <= 12
    assert {r["annotator"] for r in records} == {"reward-model"} and all(r["conversation"] for r in records)
    found = results(tmp_path / "best.run")
    for n in (1, 2, 4, 5):
        best_of = [sum(map(max, combinations(s, n))) / math.comb(5, n) for s in all_scores]
        assert found["best_scores"][str(n)] == pytest.approx(sum(best_of) / 12, abs=1e-4)
    assert found["kl_bound"] == pytest.approx(math.log(5) - 4 / 5)
    assert (found["prompts"], found["demonstrations"]) == (12, len(kept))
    line = capsys.readouterr().err
    assert f"{found['best_scores']['1']:.3f} of 1" in line and "KL from the policy 0.81 (upper bound, in nats)" in line


def test_a_cut_answer_is_no_demonstration(world: World, tmp_path: Path, sampled_groups: list[Any]) -> None:
    """However high a cut answer scores, a finished one is kept; only prompts without any are left out."""
    judged = tmp_path / "reward.py"
    judged.write_text("def longest(talks):\n    return [len(talk[-1]['content']) for talk in talks]\n")
    records = run(world, tmp_path / "best.jsonl", replace(CONFIG, samples=2, max_tokens=12), reward=f"{judged}:longest")
    whole = sum(any(answer.ended for answer in answers) for _, answers in sampled_groups)
    assert len(records) == whole < 12
    assert any(len({answer.ended for answer in answers}) == 2 for _, answers in sampled_groups)
    with pytest.raises(InputError, match="no best response has both an end of turn and text"):
        run(world, tmp_path / "none.jsonl", replace(CONFIG, max_tokens=1))
    assert not (tmp_path / "none.jsonl").exists()


def test_sft_takes_them(world: World, tmp_path: Path) -> None:
    run(world, tmp_path / "best.jsonl")
    sft(world.sft, (tmp_path / "best.jsonl",), tmp_path / "rft", config=replace(SFT, tokens=64 * 4 * 4))
    assert (tmp_path / "rft" / "model.safetensors").is_file()


def test_resuming_changes_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "ROWS", 20)  # four prompts at once
    whole = run(world, tmp_path / "whole.jsonl")
    interrupted(lambda: run(world, tmp_path / "cut.jsonl"), monkeypatch, 4)
    assert not (tmp_path / "cut.jsonl").exists()
    assert run(world, tmp_path / "cut.jsonl") == whole
    assert results(tmp_path / "cut.run") == results(tmp_path / "whole.run")


def test_a_file_of_somebody_else_is_left_alone(world: World, tmp_path: Path) -> None:
    (tmp_path / "best.jsonl").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        run(world, tmp_path / "best.jsonl")
    assert (tmp_path / "best.jsonl").read_text() == "mine"


def test_a_poisoned_reward_model_ends_in_one_line(world: World, tmp_path: Path) -> None:
    poisoned = scorer_with(world, tmp_path / "nan", 3e38)
    with pytest.raises(InputError, match="scores are not finite"):
        run(world, tmp_path / "best.jsonl", reward=poisoned)
