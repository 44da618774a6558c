"""Stages with rewards other than a reward model, and with ensembles."""

import hashlib
import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ppo_bench import PLAIN, run_ppo, scorer_with
from scorer_server import by, letters, serving
from test_rloo_grpo import GRPO, RLOO, run_groups
from world import World, metrics, named, results, same_files

from tutelage import cli
from tutelage.data.panel import Panel
from tutelage.errors import InputError
from tutelage.evals.bench import EvaluateConfig
from tutelage.evals.evaluate import evaluate
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.open import load_frozen, open_reward, reward_inputs
from tutelage.rlhf.actors import load_actors, load_judge
from tutelage.rlhf.rollouts import encode_prompts, judge_score, next_rollout
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy, load_scorer
from tutelage.runs.identity import hash_inputs
from tutelage.runs.run import Run
from tutelage.stages.best_of_n import BestOfNConfig, best_of_n

CPU = choose_device("cpu", "fp32")
SHORT = replace(PLAIN, iterations=2)


def reward_file(folder: Path, returned: str, name: str = "reward.py") -> str:
    """A file with a function of the conversations `talks`."""
    (folder / name).write_text(f"def judge(talks):\n    return {returned}\n")
    return f"{folder / name}:judge"


@pytest.fixture
def by_letters(tmp_path: Path) -> str:
    """The same reward as the server's `letters`, as a function."""
    counted = "10.0 * t[-1]['content'].count('e') + 0.01 * len(t[-2]['content'])"
    return reward_file(tmp_path, f"[len(t[-1]['content']) + {counted} for t in talks]")


# ---- a function, a server


def test_ppo_by_a_function_and_by_a_server_is_the_same_run(world: World, tmp_path: Path, by_letters: str) -> None:
    function = run_ppo(world, tmp_path / "function", SHORT, reward=by_letters)
    with serving(by(letters)) as scorer:
        server = run_ppo(world, tmp_path / "server", SHORT, reward=scorer.url)
        talks = [talk for body in scorer.asked for talk in body["input"]]
        url = scorer.url
    same_files(function, server, ["model.safetensors", "value/model.safetensors"])
    assert metrics(function) == metrics(server) and metrics(server)[-1]["kl"] != 0.0
    asked = {json.loads(line)["prompt"][0]["content"] for line in world.prompts.read_text().splitlines()}
    assert len(talks) == 3 * SHORT.batch  # two rollouts to learn from, one to measure
    assert all([m["role"] for m in talk] == ["user", "assistant"] and talk[0]["content"] in asked for talk in talks)
    assert not any("<|" in talk[1]["content"] for talk in talks)
    made_from = json.loads((server / "run.json").read_text())["inputs"]
    assert made_from["reward"]["path"] == url and len(made_from["reward"]["sha256"]) == 64


def test_a_response_is_scored_by_its_text(world: World, tmp_path: Path) -> None:
    """A response without an end of turn earns 7 less, at most 7 less than the others' mean; by the judge, too."""
    config = replace(PLAIN, batch=32, missing_end=7.0, max_tokens=10)
    judged = reward_file(tmp_path, "[float(len(t[-1]['content'])) for t in talks]")
    run = Run(tmp_path / "run", stage="ppo", config=config, inputs={})
    actors = load_actors(world.sft, (judged,), config, run)
    asked = encode_prompts(actors, (world.prompts,), 8, config, "ppo")
    rollout, _ = next_rollout(actors, asked, 0, config, [torch.arange(32)], samples=4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(world.sft)
    lengths, whole = [], []
    for row, talk in enumerate(rollout.conversations):
        ids = rollout.responses.tokens[row][rollout.responses.mask[row]].tolist()
        ended = ids[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(ids[:-1] if ended else ids)
        assert talk == [*asked[row // 4].messages, {"role": "assistant", "content": text}]
        lengths.append(float(len(text)))
        whole.append(ended)
    assert rollout.scores.tolist() == pytest.approx(charged(lengths, whole, 7.0)) and 0 < sum(whole) < 32
    other = "[-len(t[-1]['content']) / 2 for t in talks]"
    against = load_judge(reward_file(tmp_path, other, "other.py"), world.sft, config, run)
    halves = charged([-length / 2 for length in lengths], whole, 7.0)
    assert judge_score(against, rollout, config, tokenizer.eos_token_id) == pytest.approx(statistics.fmean(halves))
    short = replace(config, min_answer=6)
    valid = [ended and size >= 6 for ended, size in zip(whole, rollout.responses.mask.sum(1).tolist(), strict=True)]
    assert judge_score(against, rollout, short, tokenizer.eos_token_id) == pytest.approx(
        statistics.fmean(charged([-length / 2 for length in lengths], valid, 7.0))
    )
    assert valid != whole and any(valid)


def charged(scores: list[float], valid: list[bool], penalty: float) -> list[float]:
    """What invalid responses earn, spelt out."""
    most = statistics.fmean(score for score, good in zip(scores, valid, strict=True) if good)
    return [score if good else min(score, most) - penalty for score, good in zip(scores, valid, strict=True)]


@pytest.mark.parametrize("adapters", [0, 2])
def test_without_a_reward_model_the_value_network_starts_as_the_policy_with_values_of_0(
    world: World, tmp_path: Path, by_letters: str, adapters: int
) -> None:
    config = replace(PLAIN, lora_rank=adapters)
    run = Run(tmp_path / "run", stage="ppo", config=config, inputs={})
    actors = load_actors(world.sft, (by_letters,), config, run)
    ids = torch.tensor([[15, 17, 260, 33, 8]])
    assert actors.value_base == world.sft and torch.equal(actors.value(ids), torch.zeros(1, 5))
    assert actors.value.score.weight.requires_grad
    torch.testing.assert_close(actors.value.trunk(ids), load_policy(world.sft, CPU)[0](ids))
    shared = actors.value.trunk.embedding.weight is actors.policy.embedding.weight
    assert shared == bool(adapters)
    out = run_ppo(world, tmp_path / "out", replace(config, iterations=3), reward=by_letters)
    learned = load_scorer(out / "value", CPU)[0](ids)
    assert torch.isfinite(learned).all() and learned.abs().max() > 0
    assert torch.equal(actors.value.trunk(ids), load_policy(world.sft, CPU)[0](ids))


@pytest.mark.parametrize("config", [RLOO, GRPO], ids=["rloo", "grpo"])
def test_training_raises_a_functions_score(world: World, tmp_path: Path, config: Any) -> None:
    """The function rewards length: after 25 rollouts the responses are longer."""
    judged = reward_file(tmp_path, "[len(t[-1]['content']) / 10 for t in talks]")
    longer = replace(config, iterations=25, batch=32, lr=3e-3, missing_end=0.0, kl_coef=0.0)
    longer = longer if config is RLOO else replace(longer, minibatch=32)
    lines = metrics(run_groups(world, tmp_path / "out", longer, reward=judged))
    assert statistics.fmean(line["score"] for line in lines[-3:]) > lines[0]["score"] + 0.5


def test_a_changed_function_is_another_run(world: World, tmp_path: Path) -> None:
    judged = reward_file(tmp_path, "[1.0 for t in talks]")
    config = replace(SHORT, iterations=1)
    run_ppo(world, tmp_path / "out", config, reward=judged)
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    run_ppo(world, tmp_path / "out", config, reward=judged)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written
    reward_file(tmp_path, "[2.0 for t in talks]")
    with pytest.raises(InputError, match="reward has changed"):
        run_ppo(world, tmp_path / "out", config, reward=judged)


def test_after_a_failing_scorer_the_run_can_be_resumed(world: World, tmp_path: Path) -> None:
    """It answers the first rollout, then an error; with the scorer back, the run ends as if nothing had been."""
    config = replace(SHORT, checkpoint_seconds=0.0)
    patience = [10**6]

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        patience[0] -= 1
        return by(letters)(body) if patience[0] >= 0 else (400, b"out of credit")

    with serving(answer) as scorer:
        whole = run_ppo(world, tmp_path / "whole", config, reward=scorer.url)
        patience[0] = 1
        with pytest.raises(InputError, match="status 400 .out of credit."):
            run_ppo(world, tmp_path / "out", config, reward=scorer.url)
        patience[0] = 10**6
        run_ppo(world, tmp_path / "out", config, reward=scorer.url)
    same_files(whole, tmp_path / "out", ["model.safetensors", "value/model.safetensors"])


def test_best_of_n_keeps_the_functions_favourite(world: World, tmp_path: Path) -> None:
    heard = tmp_path / "heard.jsonl"
    (tmp_path / "reward.py").write_text(
        f"import json\ndef judge(talks):\n    with open({str(heard)!r}, 'a') as file:\n"
        "        file.writelines(json.dumps(t) + '\\n' for t in talks)\n"
        "    return [float(len(t[-1]['content'])) for t in talks]\n"
    )
    config = BestOfNConfig(count=6, samples=4, max_tokens=24, max_prompt=32, missing_end=1.0, dtype="fp32")
    judged = f"{tmp_path / 'reward.py'}:judge"
    best_of_n(world.sft, (judged,), (world.prompts,), tmp_path / "best.jsonl", config)
    talks = [json.loads(line) for line in heard.read_text().splitlines()]
    assert len(talks) == 24
    records = map(json.loads, (tmp_path / "best.jsonl").read_text().splitlines())
    kept = {record["messages"][0]["content"]: record["messages"][1]["content"] for record in records}
    assert kept
    for question, answer in kept.items():
        said = [talk[1]["content"] for talk in talks if talk[0]["content"] == question]
        assert answer in said  # a longer one among them was cut, and cost 1


def test_the_panel_judges_by_its_utility(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gold of every demonstration, and of a run's responses, which learns nothing from it."""
    panel = Panel.load(world.panel)
    talks = [json.loads(line)["messages"] for line in world.demos.read_text().splitlines()]
    cli.main(["score", str(world.panel), str(world.demos)])
    scores = [item["score"] for item in json.loads(capsys.readouterr().out)["data"]]
    assert scores == [panel.utility([asked], said["content"]) for asked, said in talks] and len(set(scores)) > 10
    judged = run_ppo(world, tmp_path / "judged", SHORT, judge=str(world.panel))
    same_files(judged, run_ppo(world, tmp_path / "plain", SHORT), ["model.safetensors", "value/model.safetensors"])
    assert all(-4 < line["judge_score"] < 4 for line in metrics(judged))
    recorded = json.loads((judged / "run.json").read_text())["inputs"]["judge"]
    assert recorded["sha256"] == hashlib.sha256(world.panel.read_bytes()).hexdigest()


def test_what_is_no_panel_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for name, said in {"other.json": "not a panel", "none.json": "none.json"}.items():
        with pytest.raises(InputError, match=said):
            open_reward((str(tmp_path / name),), RewardsConfig(), lambda place: load_frozen(place, CPU))


def test_evaluate_by_a_function(world: World, tmp_path: Path) -> None:
    judged = reward_file(tmp_path, "[float(len(t[-1]['content'])) for t in talks]")
    config = EvaluateConfig(
        count=8, max_tokens=24, max_prompt=32, heldout_windows=2, samples=8, best_of=(4,), dtype="fp32"
    )
    data = (world.base, (judged,), world.panel, (world.heldout,))
    evaluate((), tmp_path / "out", (world.prompts_test,), (), world.sft, *data, config)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for name, row in report["models"].items():
        assert row["reward"] == statistics.fmean(len(s["answers"][name]) for s in report["samples"]), name
    assert report["models"]["best-of-4"]["reward"] > report["models"]["sft"]["reward"]


# ---- several


def copy_scaled(world: World, folder: Path, factor: float) -> Path:
    """The reward model with all its scores multiplied."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(world.reward, folder)
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] *= factor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"reward_mean": factor * config["reward_mean"], "reward_std": factor * config["reward_std"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def scores_of(rewards: tuple[Any, ...], world: World, **config: Any) -> torch.Tensor:
    talks = [json.loads(line)["messages"] for line in world.demos.read_text().splitlines()[:20]]
    return open_reward(named(rewards), RewardsConfig(**config), lambda place: load_frozen(place, CPU)).score(talks)


@pytest.mark.parametrize("how", ["mean", "wco", "uwo"])
def test_an_ensemble_of_one_model_is_that_model(world: World, tmp_path: Path, how: str) -> None:
    """Copies with other scales count equally; the result is in the mean of the scales."""
    alone = scores_of((world.reward,), world)
    assert alone.std() > 0
    same = scores_of((world.reward, world.reward), world, ensemble=how, uwo_lambda=0.5)
    torch.testing.assert_close(same, alone, atol=1e-5, rtol=1e-5)
    louder = copy_scaled(world, tmp_path / "louder", 3.0)
    both = scores_of((world.reward, louder), world, ensemble=how, uwo_lambda=0.5)
    torch.testing.assert_close(both, 2 * alone, atol=1e-4, rtol=1e-4)


def test_members_that_differ_by_definition(world: World, tmp_path: Path) -> None:
    """Expected: scores divided by each member's scale, combined, times the mean scale."""
    against = copy_scaled(world, tmp_path / "against", -1.0)
    config = json.loads((against / "config.json").read_text()) | {"reward_std": 0.5}
    (against / "config.json").write_text(json.dumps(config))
    alone, std = scores_of((world.reward,), world), json.loads((world.reward / "config.json").read_text())["reward_std"]
    unit = (std + 0.5) / 2
    pairs = [(s / std, -s / 0.5) for s in alone.tolist()]
    expected = {
        "mean": [unit * statistics.fmean(pair) for pair in pairs],
        "wco": [unit * min(pair) for pair in pairs],
        "uwo": [unit * (statistics.fmean(pair) - 0.3 * statistics.pvariance(pair)) for pair in pairs],
    }
    for how, scores in expected.items():
        found = scores_of((world.reward, against), world, ensemble=how, uwo_lambda=0.3)
        assert found.tolist() == pytest.approx(scores, abs=1e-4), how


def test_functions_in_an_ensemble_are_taken_as_they_are(world: World, tmp_path: Path) -> None:
    ones, length = (
        reward_file(tmp_path, "[1.0 for t in talks]"),
        reward_file(tmp_path, "[len(t[-1]['content']) for t in talks]", "l.py"),
    )
    lengths = scores_of((length,), world).float()
    torch.testing.assert_close(scores_of((ones, length), world), (1 + lengths) / 2)
    assert torch.equal(scores_of((ones, length), world, ensemble="wco"), lengths.clamp(max=1))
    mixed = scores_of((world.reward, length), world)
    torch.testing.assert_close(mixed, (scores_of((world.reward,), world) + lengths) / 2, atol=1e-4, rtol=1e-4)


def test_the_spread_of_demonstrations_is_recorded(world: World) -> None:
    talks = [json.loads(line)["messages"] for line in world.demos.read_text().splitlines()]
    config = json.loads((world.reward / "config.json").read_text())
    reward = open_reward(named(world.reward), RewardsConfig(), lambda place: load_frozen(place, CPU))
    scores = reward.score(talks).tolist()
    assert statistics.fmean(scores) == pytest.approx(0.0, abs=1e-4)
    assert statistics.pstdev(scores) == pytest.approx(config["reward_std"], rel=1e-4) and config["reward_std"] > 0


def test_ppo_against_the_worst_case(world: World, tmp_path: Path, by_letters: str) -> None:
    """The value network starts from the one reward model; the function always scores higher, so the model decides."""
    kind = reward_file(tmp_path, "[1000.0 for t in talks]", "kind.py")
    alone = run_ppo(world, tmp_path / "alone", SHORT)
    both = run_ppo(world, tmp_path / "both", replace(SHORT, ensemble="wco"), reward=(kind, world.reward))
    for line, other in zip(metrics(alone), metrics(both), strict=True):
        assert line["score"] == pytest.approx(other["score"], abs=1e-3)
    made_from = json.loads((both / "run.json").read_text())["inputs"]
    assert made_from["reward-0"]["path"] == kind and made_from["reward-1"]["path"] == str(world.reward)
    assert results(both)["stopped"] is None


def test_adapted_members_share_the_policys_base(world: World, tmp_path: Path) -> None:
    from world import REWARD

    from tutelage.stages.reward import reward

    runs = [tmp_path / f"rm{seed}" for seed in (0, 1)]
    for seed, out in enumerate(runs):
        config = replace(REWARD, lora_rank=2, seed=seed)
        reward(world.sft, (world.comparisons,), out, (world.demos,), world.panel, config)
    config = replace(PLAIN, lora_rank=2, ensemble="uwo")
    run = Run(tmp_path / "run", stage="ppo", config=config, inputs={})
    actors = load_actors(world.sft, named(tuple(runs)), config, run)
    assert len(actors.reward.models) == 2
    assert all(model.trunk.embedding.weight is actors.policy.embedding.weight for model in actors.reward.models)
    lines = metrics(run_ppo(world, tmp_path / "out", replace(config, iterations=2), reward=tuple(runs)))
    assert lines[0]["kl"] == 0.0 and all(line["ratio_error"] < 1e-4 for line in lines if "ratio_error" in line)


def test_what_is_no_ensemble_is_one_line(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--ensemble wco: needs several rewards, one is given"):
        scores_of((world.reward,), world, ensemble="wco")
    unknown = scorer_with(world, tmp_path / "unknown", 0.1)
    config = json.loads((unknown / "config.json").read_text())
    del config["reward_std"]
    (unknown / "config.json").write_text(json.dumps(config))
    scores_of((unknown,), world)
    with pytest.raises(InputError, match="unknown: its config.json has no reward_std"):
        scores_of((world.reward, unknown), world)


def test_one_run_is_recorded_as_before(world: World) -> None:
    assert hash_inputs({"reward": reward_inputs(named(world.reward))}) == hash_inputs({"reward": world.reward})
