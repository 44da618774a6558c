"""PPO runs with the monitor: a healthy run has no finding, a broken one has the right one, and no weight changes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_bench import PLAIN, Bench, run_ppo
from test_reward import Theirs, by_count, counted
from world import REWARD, World, interrupted, metrics, results, same_files

from tutelage.errors import InputError
from tutelage.rewards.reward import ModelReward
from tutelage.rlhf import rollouts, setup
from tutelage.rlhf.monitor import Monitor
from tutelage.runs.folder import load_scorer
from tutelage.sampling import rollout as sampled
from tutelage.stages import ppo as stage
from tutelage.stages.reward import reward

LONG = replace(PLAIN, iterations=16, batch=16, minibatch=16, max_tokens=24, lr=3e-4)


def names(run: Path) -> list[str]:
    return [finding["name"] for finding in results(run)["findings"]]


def test_a_healthy_run_is_left_alone(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reward model that prefers something, and learning rates at which the policy learns it."""
    comparisons = counted(tmp_path / "c.jsonl", 300, by_count)
    reward(world.sft, (comparisons,), tmp_path / "rm", (world.demos,), config=replace(REWARD, epochs=3, batch=16))
    config = replace(LONG, iterations=24, batch=32, minibatch=32, value_lr=3e-3, lr=5e-4, warmup=5)
    out = run_ppo(world, tmp_path / "out", config, reward=tmp_path / "rm")
    assert results(out)["findings"] == [] and results(out)["stopped"] is None
    assert "found at" not in capsys.readouterr().err
    assert len(metrics(out)) == 24


def test_the_end_names_the_kept_policy_and_where_it_began(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where that is the policy it started from: no rollout but the first is within this budget."""
    out = run_ppo(world, tmp_path / "out", replace(LONG, iterations=2))
    printed, first = capsys.readouterr().err, metrics(out)[0]
    assert f"{out}: optimised with PPO; iteration 2 of 2 was kept\n  score {first['score']:.4g} -> " in printed
    assert "warning" not in printed and f"next: tutelage chat {out}\n" in printed
    unchanged = run_ppo(world, tmp_path / "unchanged", replace(LONG, iterations=2, warmup=0, lr=3e-3, kl_budget=1e-9))
    assert results(unchanged)["kept_iteration"] == 0
    sentence = results(unchanged)["nothing_learned"]
    assert sentence.startswith("iteration 0 was kept (KL ") and "so nothing was learned" in sentence
    assert f"warning: {sentence}; lower --lr" in capsys.readouterr().err
    assert "nothing_learned" not in results(out)
    same_files(world.sft, unchanged, ["model.safetensors"])


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the KL coefficient was called price, and a checkpoint had no hashes."""
    out = tmp_path / "out"
    interrupted(lambda: run_ppo(world, out, replace(LONG, iterations=3)), monkeypatch, 1)
    (saved,) = (out / "checkpoints").glob("*/state.json")
    state = json.loads(saved.read_text())
    old = [["price" if key == "kl_coef" else key, value] for key, value in state["items"]]
    assert old != state["items"]
    saved.write_text(json.dumps({"items": old}))
    (saved.parent / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match=f"{out}: its checkpoint is from an earlier version .*; give another --out"):
        run_ppo(world, out, replace(LONG, iterations=3))


def test_a_reward_model_without_a_preference_is_a_finding(world: World, tmp_path: Path) -> None:
    """The tiny world's reward model: its scores are nearly equal, so a value network has nothing to explain."""
    out = run_ppo(world, tmp_path / "out", LONG)
    assert names(out) == ["value network blind"]
    assert all(line["explained_variance"] < 0 for line in metrics(out)[6:11])


def test_the_monitor_changes_no_weight(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monitored = run_ppo(world, tmp_path / "monitored", replace(LONG, iterations=4))
    monkeypatch.setattr(Monitor, "record", lambda *given: [])
    monkeypatch.setattr(Monitor, "sound", True)
    blind = run_ppo(world, tmp_path / "blind", replace(LONG, iterations=4))
    same_files(monitored, blind, ["model.safetensors", "value/model.safetensors"])
    assert metrics(monitored) == metrics(blind)


def test_a_sampler_at_another_temperature(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that learns agrees with itself, so neither the ratio nor the KL at the start can see it."""
    original = rollouts.generate
    monkeypatch.setattr(
        rollouts,
        "generate",
        lambda m, p, s, end, given, n, **more: original(m, p, s, end, replace(given, temperature=1.3), n, **more),
    )
    out = run_ppo(world, tmp_path / "out", replace(LONG, iterations=4))
    assert names(out)[0] == "sampler gap"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "sampler gap" in line]  # once, not four times
    assert "found at iteration 0" in line and "different temperatures" in line


def test_a_reference_at_another_temperature(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = sampled.response_logprobs

    def cooler(policy: Any, responses: Any, temperature: float = 1.0) -> torch.Tensor:
        frozen = not any(p.requires_grad for p in policy.parameters())
        return original(policy, responses, 0.9 if frozen else temperature)

    monkeypatch.setattr(sampled, "response_logprobs", cooler)
    with pytest.raises(InputError, match="iteration 0: KL not 0 at the start: .* another temperature"):
        run_ppo(world, tmp_path / "out", LONG)
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_flipped_sign_of_the_kl(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = stage.shaped_rewards
    monkeypatch.setattr(stage, "shaped_rewards", lambda *given, kl_coef: original(*given, kl_coef=-kl_coef))
    config = replace(LONG, iterations=20, kl_coef=0.5, lr=5e-4, value_lr=1e-2)
    assert "objective falling" in names(run_ppo(world, tmp_path / "flipped", config))
    monkeypatch.undo()
    assert "objective falling" not in names(run_ppo(world, tmp_path / "right", config))


def test_a_lost_end_of_turn_ends_the_run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the fourth rollout on no response ends; the policy kept is the one before that."""
    original, calls = rollouts.score_rollout, []

    def endless(*given: Any, **named: Any) -> Any:
        rollout = original(*given, **named)
        calls.append(1)
        ended = rollout.responses.ended & (len(calls) <= 3)
        return replace(rollout, responses=replace(rollout.responses, ended=ended))

    monkeypatch.setattr(rollouts, "score_rollout", endless)
    out = run_ppo(world, tmp_path / "out", LONG)
    assert names(out) == ["end of turn rare", "end of turn lost"]
    assert results(out)["stopped"] == "end of turn lost at iteration 7" and results(out)["kept_iteration"] == 2
    assert len(metrics(out)) == 8 and "policy_loss" not in metrics(out)[-1]
    monkeypatch.undo()
    short = run_ppo(world, tmp_path / "short", replace(LONG, iterations=2))  # its kept policy is that of rollout 2
    same_files(out, short, ["model.safetensors"])


def test_a_judge_that_prefers_sft_ends_the_run_with_the_policy_it_scored_best(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score rises throughout. Over five rollouts the judge likes those up to the eighth best, then it turns."""
    original = rollouts.score_rollout
    judged = [0.0, 0.1, 0.0, 0.1, 0.0, 1.0, 1.0, 0.2] + [-1.0] * 8
    calls: list[int] = []

    def rising(*given: Any, **named: Any) -> Any:
        calls.append(len(calls))
        rollout = original(*given, **named)
        return replace(rollout, scores=rollout.scores + calls[-1])

    monkeypatch.setattr(rollouts, "score_rollout", rising)
    monkeypatch.setattr(setup, "judge_score", lambda *given: judged[calls[-1]])
    interrupted(lambda: run_ppo(world, tmp_path / "out", LONG, judge=str(world.reward)), monkeypatch, 9)
    out = run_ppo(world, tmp_path / "out", LONG, judge=str(world.reward))
    assert results(out)["stopped"] == "judge below its start at iteration 11" and results(out)["kept_iteration"] == 7
    assert "keeping the policy of iteration 7, with the highest judge score" in capsys.readouterr().err
    calls.clear()
    short = run_ppo(world, tmp_path / "short", replace(LONG, iterations=7), judge=str(world.reward))
    same_files(out, short, ["model.safetensors"])


def test_without_a_judge_a_stopped_run_keeps_the_policy_with_the_best_objective(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over five rollouts the objective is best after the eighth, then it falls; at the twelfth the KL is too large."""
    original = setup.describe
    score = [0.0, 0.1, 0.0, 0.1, 0.0, 1.0, 1.0, 0.2] + [-1.0] * 8
    calls: list[int] = []

    def falling(*given: Any) -> Any:
        calls.append(len(calls))
        kl = {"kl": 100.0} if calls[-1] == 11 else {}
        return original(*given) | {"score": score[calls[-1]]} | kl

    monkeypatch.setattr(setup, "describe", falling)
    config = replace(LONG, kl_budget=50.0)
    interrupted(lambda: run_ppo(world, tmp_path / "out", config), monkeypatch, 9)
    out = run_ppo(world, tmp_path / "out", config)
    assert results(out)["stopped"] == "KL 100.0 exceeded the budget of 50.0 nats at iteration 11"
    assert results(out)["kept_iteration"] == 7
    assert "keeping the policy of iteration 7, with the highest score - beta KL" in capsys.readouterr().err
    calls.clear()
    short = run_ppo(world, tmp_path / "short", replace(config, iterations=7))
    same_files(out, short, ["model.safetensors"])


def test_with_an_adaptive_kl_coefficient_policies_are_compared_at_the_first_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The KL is always five times the target, so the KL coefficient rises to four times its start. At the first
    coefficient the policy improves in every iteration; at each iteration's coefficient the fifth would be the best.
    """
    original, calls = setup.describe, []

    def measured(rollout: Any, kl_coef: float) -> Any:
        calls.append(len(calls))
        kl = 0.0 if calls[-1] == 0 else 9.5 if calls[-1] == 11 else 5.0
        score = 0.5 * calls[-1]
        return original(rollout, kl_coef) | {"score": score, "kl": kl, "objective": score - kl_coef * kl}

    monkeypatch.setattr(setup, "describe", measured)
    config = replace(LONG, kl_coef=0.5, kl_target=1.0, kl_gain=1.0, kl_budget=9.0)
    out = run_ppo(world, tmp_path / "out", config)
    lines = metrics(out)
    assert lines[10]["kl_coef"] > 3.5 * lines[0]["kl_coef"] and lines[10]["objective"] < lines[4]["objective"] - 2
    assert results(out)["kept_iteration"] == 10 and "objective falling" not in names(out)


def test_the_judge_is_logged_and_learns_nothing(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its score is the reward's on the same responses; the weights are those of a run without it, which says so."""
    config = replace(LONG, iterations=2)
    plain = run_ppo(world, tmp_path / "plain", config)
    judged = run_ppo(world, tmp_path / "judged", config, judge=str(world.reward))
    same_files(plain, judged, ["model.safetensors", "value/model.safetensors"])
    assert all("judge_score" not in line for line in metrics(plain))
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "no --judge" in line]
    assert str(plain) in warning
    for line in metrics(judged):  # the judge is the reward model itself
        assert line["judge_score"] == pytest.approx(line["score"], abs=1e-5)
    assert json.loads((judged / "run.json").read_text())["inputs"]["judge"]["path"] == str(world.reward)


def test_a_judges_score_is_transformers(world: World, bench: Bench) -> None:
    rollout = bench.rollout
    ours = rollouts.judge_score(
        ModelReward(*load_scorer(world.reward, bench.run.device)), rollout, bench.config, bench.tokenizer.end_of_turn_id
    )
    rows = zip(rollout.responses.ids.tolist(), rollout.responses.last.tolist(), rollout.responses.ended, strict=True)
    theirs = Theirs(world.reward)
    scored = [(theirs.score(ids[: last + 1]), ended) for ids, last, ended in rows]
    whole = [score for score, ended in scored if ended]
    most = sum(whole) / len(whole)
    expected = [score if ended else min(score, most) - 1 for score, ended in scored]
    assert ours == pytest.approx(sum(expected) / len(expected), abs=1e-4)
