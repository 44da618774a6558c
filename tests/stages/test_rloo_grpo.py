"""RLOO and GRPO as stages: their rollouts, their gates, what they save, and that they learn.

The mathematics against a problem with a known optimum is in test_group_mdp.py.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ppo_bench import Bench, scorer_with
from test_reward import by_count, counted
from world import REWARD, World, files_in, interrupted, metrics, named, results, same_files

from tutelage import cli
from tutelage.errors import InputError
from tutelage.learning.ptx import PretrainingShare
from tutelage.model.kv_cache import KVCache
from tutelage.rlhf import learner
from tutelage.rlhf.actors import load_actors
from tutelage.rlhf.rollouts import EncodedPrompt, next_rollout
from tutelage.rlhf.setup import RLInputs
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.runs.run import Run
from tutelage.stages.grpo import GRPOConfig, grpo, loss
from tutelage.stages.reward import reward
from tutelage.stages.rloo import RLOOConfig, rloo

SMALL: dict[str, Any] = dict(
    iterations=4, batch=8, max_tokens=24, max_prompt=32, ptx_windows=2, ptx_calibration=2, kl_budget=1e9, lr=1e-3,
    samples=4, dtype="fp32",
)  # fmt: skip
RLOO, GRPO = RLOOConfig(**SMALL), GRPOConfig(**SMALL, minibatch=4, epochs=2)
DOCTOR = replace(GRPO, variant="dr-grpo", kl_coef=0.0)
BOTH = pytest.mark.parametrize("config", [RLOO, GRPO], ids=["rloo", "grpo"])


def run_groups(world: World, out: Path, config: RLOOConfig | GRPOConfig, **given: Any) -> Path:
    inputs = {"policy": world.sft, "reward": world.reward, "prompts": (world.prompts,)} | given
    stage: Callable[..., None] = rloo if isinstance(config, RLOOConfig) else grpo
    stage(RLInputs(out=out, **inputs | {"reward": named(inputs["reward"])}), config)
    return out


# ---- the rollout


def test_the_responses_to_a_prompt_are_neighbours_and_share_its_prefill(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actors = load_actors(
        world.sft, named(world.reward), RLOO, Run(tmp_path, stage="x", config=RLOO, inputs={}), critic=False
    )
    assert actors.value is None and actors.shared_layers == 0
    prefilled: list[int] = []
    original = KVCache.__init__

    def counting(self: KVCache, *given: Any, **named: Any) -> None:
        prefilled.append(named["batch"])
        original(self, *given, **named)

    monkeypatch.setattr(KVCache, "__init__", counting)
    asked = [[15, 17, 260, 33, 8], [120, 77], [201, 9, 45]]
    prompts = [EncodedPrompt(ids, []) for ids in asked]
    rollout, gap = next_rollout(actors, prompts, 1, RLOO, [torch.arange(8)], 4)
    assert prefilled == [2] and rollout.values is None and gap < 1e-3
    rows = [row[:start].tolist() for row, start in zip(rollout.responses.ids, rollout.responses.starts, strict=True)]
    assert rows == [asked[2]] * 4 + [asked[0]] * 4  # the second rollout of two prompts each, round and round
    said = [tuple(row.tolist()) for row in rollout.responses.tokens]
    assert len(set(said)) == 8  # every response has a seed of its own


@BOTH
def test_a_run(world: World, tmp_path: Path, config: Any) -> None:
    """Ratio 1 before the first step, KL 0 at the start; no value network; transformers reads what is saved."""
    out = run_groups(world, tmp_path / "out", config)
    lines = metrics(out)
    assert lines[0]["kl"] == 0.0 and lines[-1]["kl"] != 0.0
    assert all(line["ratio_error"] < 1e-4 and line["sampler_gap"] < 1e-3 for line in lines)
    assert not any(key.startswith("ptx_") or key in ("value_loss", "explained_variance") for key in lines[0])
    expected = {"ptx_coef": 0.0, "stopped": None, "kept_iteration": config.iterations, "findings": []}
    assert results(out) == expected | {"prompts": 8, "shared_layers": 0, "reward_read_at": ["end of turn"]}
    assert not any(name.startswith(("value", "adapter", "checkpoints")) for name in files_in(out))
    ids = torch.tensor([[15, 17, 260, 33, 8, 120, 77]])
    ours, _ = load_policy(out, choose_device("cpu", "fp32"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_how_far_the_policy_is_from_the_one_that_sampled(bench: Bench) -> None:
    """k3 of the tokens by definition, the policy that sampled first."""
    rollout, mask = bench.rollout, bench.rollout.responses.mask
    log_ratio = 0.2 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(4))
    _, logged = loss(rollout.logprobs + log_ratio, rollout, torch.ones(16), GRPO)
    expected = [math.exp(d) - 1 - d for d in log_ratio[mask].tolist()]
    assert logged["approx_kl"] == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@BOTH
def test_every_logged_key_is_documented(world: World, tmp_path: Path, config: Any) -> None:
    """Those, too, that the stage gets from other files."""
    out = run_groups(world, tmp_path / "out", config, corpus=(world.corpus,))
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for key in metrics(out)[0].keys() - {"step"}:
        stages = re.findall(rf"^\| `{key}` \| ([^|]+) \|", page, re.MULTILINE)
        assert ("rloo" if config is RLOO else "grpo") in ", ".join(stages), key


@BOTH
def test_a_judge_is_logged_and_learns_nothing(world: World, tmp_path: Path, config: Any) -> None:
    plain = run_groups(world, tmp_path / "plain", config)
    judged = run_groups(world, tmp_path / "judged", config, judge=str(world.reward))
    same_files(plain, judged, ["model.safetensors"])
    assert all("judge_score" not in line for line in metrics(plain))
    for line in metrics(judged):  # the judge is the reward model itself
        assert line["judge_score"] == pytest.approx(line["score"], abs=1e-5)


# ---- gates


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["--samples", "1"], "--samples 1: must be at least 2; a response is compared with the others to its prompt"),
        (["--samples", "5"], "--batch 64 --samples 5: responses come in groups of 5"),
        (["--lora-rank", "2", "--lora-dropout", "0.1"], "in RL dropout would move the ratio off 1"),
    ],
)
@pytest.mark.parametrize("verb", ["rloo", "grpo"])
def test_settings_without_a_meaning(
    verb: str, settings: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [verb, "--policy", "x", "--reward", "x", "--prompts", "x", "--out", str(tmp_path / "out"), *settings]
    with pytest.raises(SystemExit) as end:
        cli.main(asked)
    said = capsys.readouterr().err
    assert end.value.code == 2 and complaint in said and said.count("\n") == 1


@BOTH
def test_a_ratio_off_one_stops_the_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    right = learner.response_logprobs
    monkeypatch.setattr(learner, "response_logprobs", lambda policy, responses, t: right(policy, responses, 1.3 * t))
    with pytest.raises(InputError, match="before the first step the ratio is off 1"):
        run_groups(world, tmp_path / "out", config)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@BOTH
def test_the_kl_budget_stops_the_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    """What is saved is the last policy within it: that of a run which ends where the budget was left.

    Also where the run was interrupted just before.
    """
    wild = replace(config, iterations=20, lr=0.002, kl_budget=2.0)
    out = run_groups(world, tmp_path / "out", wild)
    *learned, breach = metrics(out)
    assert breach["kl"] > 2.0 and "policy_loss" not in breach and "tied_groups" in breach
    assert all(line["kl"] <= 2.0 for line in learned) and 0 < len(learned) < 20
    assert f"exceeded the budget of 2.0 nats at iteration {len(learned)}" in results(out)["stopped"]
    ended = run_groups(world, tmp_path / "ended", replace(wild, iterations=len(learned) - 1, kl_budget=1e9))
    assert results(ended)["stopped"] is None
    same_files(out, ended, ["model.safetensors"])
    interrupted(lambda: run_groups(world, tmp_path / "cut", wild), monkeypatch, len(learned))
    same_files(out, run_groups(world, tmp_path / "cut", wild), ["model.safetensors"])


@BOTH
def test_a_poisoned_reward_model_ends_in_one_line(world: World, tmp_path: Path, config: Any) -> None:
    poisoned = scorer_with(world, tmp_path / "nan", 3e38)
    with pytest.raises(InputError, match="iteration 0: not finite: score"):
        run_groups(world, tmp_path / "out", config, reward=poisoned)
    assert not (tmp_path / "out" / "model.safetensors").exists()


# ---- going on, adapters, the pretraining mix


@pytest.mark.parametrize("adapters", [0, 4])
@BOTH
def test_a_stopped_run_resumes_exactly(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any, adapters: int
) -> None:
    config = replace(config, lora_rank=adapters)
    corpus = (world.corpus,)
    whole = run_groups(world, tmp_path / "whole", config, corpus=corpus)
    interrupted(lambda: run_groups(world, tmp_path / "cut", config, corpus=corpus), monkeypatch, 2)
    cut = run_groups(world, tmp_path / "cut", config, corpus=corpus)
    saved = ["model.safetensors", *(["adapter/adapter_model.safetensors"] if adapters else [])]
    same_files(whole, cut, saved)
    assert metrics(whole) == metrics(cut) and results(whole) == results(cut)


def test_adapters_share_their_base_with_the_reward_model(world: World, tmp_path: Path) -> None:
    """Nothing is loaded twice, and the reference is the policy with its adapters off."""
    judge, config = tmp_path / "judge", replace(RLOO, lora_rank=4)
    reward(world.sft, (world.comparisons,), judge, (world.demos,), world.panel, replace(REWARD, lora_rank=4))
    actors = load_actors(
        world.sft, named(judge), config, Run(tmp_path / "x", stage="x", config=config, inputs={}), False
    )
    assert actors.value is None and actors.reference is None
    (scorer,) = actors.reward.models
    assert scorer.trunk.embedding.weight is actors.policy.embedding.weight
    assert not any(p.requires_grad for p in scorer.parameters())
    lines = metrics(run_groups(world, tmp_path / "out", config, reward=judge))
    assert lines[0]["kl"] == 0.0 and lines[-1]["kl"] != 0.0


@BOTH
def test_the_mix_is_on_when_there_is_a_corpus(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    """With a coefficient of 0 it is the run without one, bit for bit."""
    plain = run_groups(world, tmp_path / "plain", config)
    mixed = run_groups(world, tmp_path / "mixed", config, corpus=(world.corpus,))
    assert results(mixed)["ptx_coef"] > 0 and all(line["ptx_loss"] > 0 for line in metrics(mixed))
    assert metrics(mixed)[0]["ptx_gradient_ratio"] == pytest.approx(1.0, abs=0.5)
    monkeypatch.setattr(PretrainingShare, "coefficient", 0.0)
    nothing = run_groups(world, tmp_path / "nothing", config, corpus=(world.corpus,))
    same_files(plain, nothing, ["model.safetensors"])


# ---- they learn


@pytest.mark.parametrize("config", [RLOO, GRPO, DOCTOR], ids=["rloo", "grpo", "dr-grpo"])
def test_a_reward_for_a_word_is_optimised(world: World, tmp_path: Path, config: Any) -> None:
    """As PPO's test: a reward model that counts a word, and a score that rises by several times its start."""
    comparisons = counted(tmp_path / "c.jsonl", 300, by_count)
    reward(world.sft, (comparisons,), tmp_path / "rm", (world.demos,), config=replace(REWARD, epochs=3, batch=16))
    longer = replace(config, iterations=40, batch=32, lr=3e-3, missing_end=5.0)
    longer = longer if isinstance(longer, RLOOConfig) else replace(longer, minibatch=32)
    lines = metrics(run_groups(world, tmp_path / "out", longer, reward=tmp_path / "rm"))
    assert sum(line["score"] for line in lines[-4:]) / 4 > sum(line["score"] for line in lines[:2]) / 2 + 4
    for line in lines:
        assert line["objective"] == pytest.approx(line["score"] - longer.kl_coef * line["kl"], abs=1e-4)
