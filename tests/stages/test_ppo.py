"""PPO as a stage: its rollout, its gates, what it saves, and that it learns (P-a to P-m of the oracles).

The mathematics against a problem with a known optimum is in test_ppo_mdp.py, the "ptx" in test_ppo_mixture.py.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ppo_bench import CONFIG, PLAIN, Bench, run_ppo, scorer_with
from safetensors.torch import load_file
from test_reward import Theirs, by_count, counted
from world import REWARD, World, interrupted, metrics, results, same_files

from tutelage.errors import InputError
from tutelage.learning.advantages import gae, shaped_rewards, whiten
from tutelage.learning.optim import EMA
from tutelage.model.gpt import GPT
from tutelage.rlhf import learner, rollouts
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy, load_scorer
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import generate
from tutelage.stages import ppo as stage
from tutelage.stages.ppo import PPOConfig, improve
from tutelage.stages.reward import reward

transformers = pytest.importorskip("transformers")


# ---- the rollout


def test_log_probabilities_are_transformers(world: World, bench: Bench) -> None:
    """Of every response token, given everything before it: an offset of one shows at once. Zero KL at the start."""
    model = transformers.AutoModelForCausalLM.from_pretrained(world.sft)
    rollout, responses = bench.rollout, bench.rollout.responses
    for row in range(len(bench.prompts[:16])):
        length, start = int(responses.mask[row].sum()), int(responses.starts[row])
        ids = responses.ids[row, : start + length]
        assert ids[:start].tolist() == bench.prompts[row]
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0].log_softmax(-1)
        expected = [logprobs[t - 1, ids[t]].item() for t in range(start, start + length)]
        assert rollout.logprobs[row, :length].tolist() == pytest.approx(expected, abs=1e-4)
        assert rollout.logprobs[row, length:].tolist() == [0.0] * (responses.mask.shape[1] - length)
    assert torch.equal(rollout.logprobs, rollout.ref_logprobs)  # P-i
    assert bench.gap < 1e-4


def test_scores_are_transformers_and_a_missing_end_costs(bench: Bench) -> None:
    """Read at the last token. One that was cut earns at most the mean of the others, and 1 less."""
    rollout, responses = bench.rollout, bench.rollout.responses
    answers = [responses.ids[row, : int(responses.last[row]) + 1].tolist() for row in range(16)]
    scores, ended = (
        [bench.theirs.score(ids) for ids in answers],
        [ids[-1] == bench.tokenizer.end_of_turn_id for ids in answers],
    )
    assert responses.ended.tolist() == ended and 0 < sum(ended) < 16  # both kinds were seen
    mean = sum(score for score, whole in zip(scores, ended, strict=True) if whole) / sum(ended)
    expected = [score if whole else min(score, mean) - 1 for score, whole in zip(scores, ended, strict=True)]
    assert rollout.scores.tolist() == pytest.approx(expected, abs=1e-4)


def test_the_value_starts_as_the_reward_model(bench: Bench) -> None:
    """P-m: the value before each response token is the classifier's logit at the token before it."""
    rollout, responses = bench.rollout, bench.rollout.responses
    for row in range(4):
        start, length = int(responses.starts[row]), int(responses.mask[row].sum())
        ids = responses.ids[row].tolist()
        expected = [bench.theirs.score(ids[:t]) for t in range(start, start + length)]
        assert rollout.values[row, :length].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_rewards_of_a_response_add_up(bench: Bench) -> None:
    """P-d: to score - beta (log pi - log pi_SFT), here with a policy that has moved."""
    rollout, mask = bench.rollout, bench.rollout.responses.mask
    log_ratio = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    rewards = shaped_rewards(rollout.scores, rollout.logprobs + log_ratio, rollout.ref_logprobs, mask, kl_coef=0.3)
    for row in range(16):
        n = int(mask[row].sum())
        kl = (log_ratio[row, :n]).sum().item()
        assert rewards[row].sum().item() == pytest.approx(rollout.scores[row].item() - 0.3 * kl, abs=1e-4)
        assert not rewards[row, n:].any()


def test_without_scores_and_kl_every_reward_is_zero(world: World, tmp_path: Path) -> None:
    """RM = 0 and pi = pi_ref: R is 0, exactly, at every token."""
    zero = scorer_with(world, tmp_path / "zero", 0.0)
    bench = Bench(world, tmp_path / "bench", zero, replace(CONFIG, missing_end=0.0))
    rollout, mask = bench.rollout, bench.rollout.responses.mask
    rewards = shaped_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, mask, kl_coef=0.02)
    assert not rewards.any()
    advantages, returns = gae(rewards, rollout.values, mask, gamma=1.0, lam=0.95)
    assert not advantages.any() and not returns.any()  # the value is the reward model: 0 as well
    improve(bench.learner, rollout, advantages, returns, replace(PLAIN, missing_end=0.0), torch.Generator(), 0)
    assert bench.actors.reference is not None
    for ours, theirs in zip(bench.learner.policy.parameters(), bench.actors.reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)  # P-b


# ---- gates


def test_before_the_first_step_the_ratio_is_one(world: World, tmp_path: Path) -> None:
    """P-a, and the sampler's own log-probabilities are the trainer's (design 6.3)."""
    lines = metrics(run_ppo(world, tmp_path / "out", replace(CONFIG, epochs=2, minibatch=4)))
    assert len(lines) == 4
    assert all(line["ratio_error"] < 1e-4 for line in lines)
    assert all(line["sampler_gap"] < 1e-3 for line in lines)
    assert lines[0]["kl"] == 0.0 and lines[0]["kl_k3"] == 0.0
    assert lines[1]["kl"] != 0.0


def test_what_a_minibatch_is_compared_with_was_computed_in_its_own_shape(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 a product of another shape is rounded otherwise: the ratio would be off 1 before the first step."""
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    trunk = GPT.trunk

    def recorded(self: GPT, ids: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        seen[torch.is_grad_enabled()].append(ids)
        return trunk(self, ids, *given, **named)

    monkeypatch.setattr(GPT, "trunk", recorded)
    run_ppo(world, tmp_path / "out", replace(PLAIN, batch=12, minibatch=4, iterations=1))
    assert len(seen[True]) == 2 * 3  # policy and value, three minibatches
    for learned in seen[True]:
        assert sum(torch.equal(learned, measured) for measured in seen[False]) == 3  # policy, reference and value


def at_another_temperature(original: Any) -> Any:
    return lambda policy, responses, temperature: original(policy, responses, 1.3 * temperature)


def one_token_late(original: Any) -> Any:
    return lambda policy, responses, t: original(policy, replace(responses, starts=responses.starts - 1), t)


@pytest.mark.parametrize("wrong", [at_another_temperature, one_token_late])
def test_a_ratio_off_one_stops_the_run(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    monkeypatch.setattr(learner, "response_logprobs", wrong(learner.response_logprobs))
    with pytest.raises(InputError, match="before the first step the ratio is off 1"):
        run_ppo(world, tmp_path / "out", PLAIN)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_dropout_while_learning_stops_the_run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = GPT.trunk

    def dropping(self: GPT, *given: Any, **named: Any) -> torch.Tensor:
        hidden = trunk(self, *given, **named)
        return F.dropout(hidden, 0.1) if torch.is_grad_enabled() else hidden

    monkeypatch.setattr(GPT, "trunk", dropping)
    with pytest.raises(InputError, match="the ratio is off 1 .* dropout"):
        run_ppo(world, tmp_path / "out", PLAIN)


def test_the_kl_budget_stops_the_run(world: World, tmp_path: Path) -> None:
    """A huge rate leaves the budget at once; what is saved is the last policy whose rollout was within it."""
    budget = 2.0
    out = run_ppo(world, tmp_path / "out", replace(PLAIN, iterations=20, lr=0.03, kl_budget=budget, ema=0.0))
    stopped = results(out)["stopped"]
    assert "exceeded the budget of 2.0 nats at iteration" in stopped
    *learned, breach = metrics(out)  # the rollout that went too far is logged, and not learned from
    assert len(learned) == int(stopped.split()[-1]) < 20
    assert all(line["kl"] <= budget for line in learned) and breach["kl"] > budget
    assert "policy_loss" not in breach
    assert kl_by_transformers(world, out) < budget


def kl_by_transformers(world: World, out: Path) -> float:
    """Mean log pi - log pi_SFT of the saved policy's own answers, both by another library."""
    policy, tokenizer = load_policy(out, choose_device("cpu", "fp32"))
    mine, sft = (transformers.AutoModelForCausalLM.from_pretrained(run) for run in (out, world.sft))
    theirs = Theirs(world.reward)
    questions = [json.loads(line)["prompt"][0]["content"] for line in world.prompts.read_text().splitlines()]
    prompts = [theirs.ids(question, "")[:-1] for question in questions]
    sampling = SamplingConfig(max_tokens=24)
    kls = []
    for prompt, (answer,) in zip(
        prompts, generate(policy, prompts, range(len(prompts)), tokenizer.end_of_turn_id, sampling), strict=True
    ):
        ids = torch.tensor([[*prompt, *answer.ids]])
        with torch.no_grad():
            sums = [
                m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, ids[0, len(prompt) :, None]).sum()
                for m in (mine, sft)
            ]
        kls.append(float(sums[0] - sums[1]))
    return sum(kls) / len(kls)


def test_a_poisoned_reward_model_ends_in_one_line(world: World, tmp_path: Path) -> None:
    poisoned = scorer_with(world, tmp_path / "nan", 3e38)
    with pytest.raises(InputError, match="not finite: score.* nan or infinite"):
        run_ppo(world, tmp_path / "out", PLAIN, reward=poisoned)
    assert not (tmp_path / "out" / "run.json").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_not_a_number_in_the_middle_ends_the_run_with_what_it_had(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third rollout is poisoned: the policy kept is the one before it, that of a run of one iteration."""
    calls: list[int] = []
    original = rollouts.score_rollout

    def poisoned(*given: Any, **named: Any) -> Any:
        rollout = original(*given, **named)
        calls.append(1)
        return replace(rollout, scores=rollout.scores * math.nan) if len(calls) == 3 else rollout

    monkeypatch.setattr(rollouts, "score_rollout", poisoned)
    out = run_ppo(world, tmp_path / "out", PLAIN)
    assert results(out)["stopped"] == "not finite at iteration 2" and results(out)["kept_iteration"] == 1
    monkeypatch.undo()
    short = run_ppo(world, tmp_path / "short", replace(PLAIN, iterations=1))
    same_files(out, short, ["model.safetensors"])


@pytest.mark.parametrize("iteration", [0, 2])
@pytest.mark.parametrize("network", ["policy_loss", "value_loss"])
def test_a_step_that_cannot_be_taken(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, iteration: int
) -> None:
    """Its gradient is nan. In the first iteration that is refused; later the policy that made the rollout is kept."""
    original, calls = getattr(stage, network), []

    def broken(*given: Any, **named: Any) -> Any:
        calls.append(1)
        found = original(*given, **named)
        factor = math.nan if len(calls) > iteration else 1.0
        return (found[0] * factor, found[1]) if isinstance(found, tuple) else found * factor

    monkeypatch.setattr(stage, network, broken)
    config = replace(PLAIN, minibatch=PLAIN.batch, epochs=1)
    if iteration == 0:
        with pytest.raises(InputError, match="the gradient is nan"):
            run_ppo(world, tmp_path / "out", config)
        return
    out = run_ppo(world, tmp_path / "out", config)
    assert results(out)["stopped"] == "step impossible at iteration 2" and results(out)["kept_iteration"] == 2
    assert "the gradient is nan" in results(out)["findings"][-1]["words"]
    assert len(metrics(out)) == 3 and "policy_loss" not in metrics(out)[-1]
    monkeypatch.undo()
    short = run_ppo(world, tmp_path / "short", replace(config, iterations=2))
    same_files(out, short, ["model.safetensors"])


# ---- what is saved


def test_the_saved_policy_is_the_average(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P-l: d^k theta_0 + (1 - d) sum d^(k-i) theta_i over all optimizer steps."""
    history: list[torch.Tensor] = []
    update = EMA.update

    def recording(self: EMA, model: GPT) -> None:
        history.append(model.embedding.weight.detach().double().clone())
        update(self, model)

    monkeypatch.setattr(EMA, "update", recording)
    out = run_ppo(world, tmp_path / "out", replace(PLAIN, minibatch=4, epochs=2, ema=0.7))
    assert len(history) == 4 * 2 * 2
    average = load_file(world.sft / "model.safetensors")["model.embed_tokens.weight"].double() * 0.7 ** len(history)
    for i, weights in enumerate(history, start=1):
        average += 0.3 * 0.7 ** (len(history) - i) * weights
    saved = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(saved.double(), average, atol=1e-6, rtol=1e-5)
    assert (saved.double() - history[-1]).abs().max() > 1e-4


def test_what_is_saved_is_read_by_transformers(world: World, tmp_path: Path) -> None:
    out = run_ppo(world, tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours, tokenizer = load_policy(out, choose_device("cpu", "fp32"))
    ids = torch.tensor([tokenizer.encode("where is the cat?")])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), model(ids).logits, atol=1e-4, rtol=1e-4)
    value, _ = load_scorer(out / "value", choose_device("cpu", "fp32"))
    theirs = Theirs(out / "value")
    with torch.no_grad():
        assert value(ids)[0, -1].item() == pytest.approx(theirs.score(ids[0].tolist()), abs=1e-5)
    assert not torch.equal(value.score.weight, load_scorer(world.reward, choose_device("cpu", "fp32"))[0].score.weight)


def test_more_passes_of_the_value_network_leave_the_policys_step_alone(world: World, tmp_path: Path) -> None:
    """Rollout and first pass are the same; the value network goes on alone, and explains more of the returns."""
    once, often = (replace(PLAIN, value_epochs=epochs, iterations=1) for epochs in (0, 8))
    a, b = run_ppo(world, tmp_path / "a", once), run_ppo(world, tmp_path / "b", often)
    same_files(a, b, ["model.safetensors"])
    assert (a / "value/model.safetensors").read_bytes() != (b / "value/model.safetensors").read_bytes()
    explained = [
        metrics(run_ppo(world, tmp_path / f"{i}", replace(config, iterations=3)))[-1]["explained_variance"]
        for i, config in enumerate((once, often))
    ]
    assert explained[1] > explained[0]
    with pytest.raises(InputError, match="give at least --epochs 2, or 0"):
        replace(PLAIN, epochs=2, value_epochs=1)


def test_how_far_the_policy_is_from_the_one_that_sampled(world: World, tmp_path: Path) -> None:
    """Before the first of two steps nothing; before the second the k3 of what the first has done, by definition."""
    once, twice = (
        Bench(world, tmp_path / f"{epochs}", world.reward, replace(PLAIN, epochs=epochs, lr=3e-3)) for epochs in (1, 2)
    )
    measured = []
    for bench in (once, twice):
        given = stage.estimate(bench.rollout, bench.config)
        measured.append(improve(bench.learner, bench.rollout, *given, bench.config, torch.Generator(), 9)["approx_kl"])
    assert measured[0] == pytest.approx(0.0, abs=1e-9)
    old, new = twice.rollout.logprobs, learner.response_logprobs(once.learner.policy, twice.rollout.responses)
    mask = twice.rollout.responses.mask
    moved = [(b - a).item() for a, b in zip(old[mask], new[mask], strict=True)]
    k3 = sum(math.exp(d) - 1 - d for d in moved) / len(moved)
    assert k3 > 1e-4 and measured[1] == pytest.approx(k3 / 2, rel=1e-3)


def test_rates_warm_up_from_a_tenth(world: World, tmp_path: Path) -> None:
    """Appendix C.4's shape: a tenth, then linear to the peak over the warm-up, then constant."""
    lines = metrics(run_ppo(world, tmp_path / "out", replace(PLAIN, iterations=6, warmup=3)))
    assert [line["lr"] for line in lines] == pytest.approx([1e-4, 4e-4, 7e-4, 1e-3, 1e-3, 1e-3])


# ---- it learns


def test_the_kl_coefficient_follows_the_kl(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ziegler's rule, from one iteration to the next, an interruption in between; and it is what rewards pay."""
    paid: list[float] = []
    original = stage.shaped_rewards
    monkeypatch.setattr(
        stage, "shaped_rewards", lambda *given, kl_coef: [paid.append(kl_coef), original(*given, kl_coef=kl_coef)][1]
    )
    config = replace(PLAIN, iterations=6, kl_target=0.05, kl_gain=0.5, kl_coef=0.2)
    whole = metrics(run_ppo(world, tmp_path / "whole", config))
    expected = [0.2]
    for line in whole[:-1]:
        expected.append(expected[-1] * (1 + 0.5 * max(-0.2, min(0.2, line["kl"] / 0.05 - 1))))
    assert [line["kl_coef"] for line in whole] == pytest.approx(expected, rel=1e-5)
    assert paid[: len(whole)] == pytest.approx(expected, rel=1e-5) and len(set(expected)) > 3
    for line in whole:
        assert line["objective"] == pytest.approx(line["score"] - line["kl_coef"] * line["kl"], abs=1e-5)
    interrupted(lambda: run_ppo(world, tmp_path / "cut", config), monkeypatch, 3)
    assert metrics(run_ppo(world, tmp_path / "cut", config)) == whole


def test_a_reward_for_a_word_is_optimised(world: World, tmp_path: Path) -> None:
    """A reward model that counts a word on word salad; the score of whole rollouts rises by several times its start.

    How it is served is the policy's choice: some seeds say the word dozens of times, others find what else this reward
    model falls for. Only the score is certain.
    """
    comparisons = counted(tmp_path / "c.jsonl", 300, by_count)
    reward(world.sft, (comparisons,), tmp_path / "rm", (world.demos,), config=replace(REWARD, epochs=3, batch=16))
    config = PPOConfig(
        iterations=32, batch=32, minibatch=32, epochs=2, max_tokens=24, max_prompt=32, lr=3e-3, value_lr=3e-3,
        ptx=False, kl_budget=1e9, missing_end=5.0, dtype="fp32",
    )  # fmt: skip
    lines = metrics(run_ppo(world, tmp_path / "out", config, reward=tmp_path / "rm"))
    assert sum(line["score"] for line in lines[-4:]) / 4 > sum(line["score"] for line in lines[:2]) / 2 + 4
    assert lines[-1]["end_of_turn_rate"] > lines[0]["end_of_turn_rate"]  # a missing end costs 5
    for line in lines:
        assert line["objective"] == pytest.approx(line["score"] - 0.02 * line["kl"], abs=1e-4)


def test_whitened_advantages_have_mean_0_and_variance_1(bench: Bench) -> None:
    """Over the whole rollout, on the tokens that count."""
    mask = bench.rollout.responses.mask
    advantages = torch.randn(mask.shape, generator=torch.Generator().manual_seed(3)) * 5 + 2
    flat = whiten(advantages, mask)[mask]
    assert flat.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert flat.var(unbiased=False).item() == pytest.approx(1.0, abs=1e-4)
