"""PPO-penalty and TRPO as updates of the PPO stage: what they may move, with adapters and the value network.

Their mathematics is in tests/learning/test_trust_region.py, the problems of known answer in test_ppo_mdp.py.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_bench import PLAIN, Bench, run_ppo
from test_reward import by_count, counted
from world import REWARD, World, interrupted, metrics, results, same_files

from tutelage import cli
from tutelage.model.parameters import trainable
from tutelage.rlhf import trust_region
from tutelage.rlhf.trust_region import response_fisher, trust_region_step
from tutelage.sampling import rollout
from tutelage.stages.ppo import PPOConfig, adapt_penalty, estimate, improve
from tutelage.stages.reward import reward

TRPO = replace(PLAIN, update="trpo", update_kl=1e-3, minibatch=4)
PENALTY = replace(PLAIN, update="penalty", update_kl=1e-3, minibatch=4, epochs=2)
BOTH = pytest.mark.parametrize("config", [PENALTY, TRPO], ids=["penalty", "trpo"])


@BOTH
def test_a_run(world: World, tmp_path: Path, config: PPOConfig) -> None:
    """Ratio 1 before the update, KL 0 at the start, a value network that learns; the report knows the keys."""
    out = run_ppo(world, tmp_path / "out", config)
    lines = metrics(out)
    assert len(lines) == 4 and results(out)["stopped"] is None
    assert lines[0]["kl"] == 0.0 and lines[-1]["kl"] != 0.0
    assert all(line["ratio_error"] < 1e-4 and line["value_loss"] > 0 for line in lines)
    assert all("clip_fraction" not in line for line in lines)
    if config.update == "trpo":
        assert all(0 < line["update_kl"] <= 1.5e-3 and line["step_share"] > 0 for line in lines)
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for key in lines[0].keys() - {"step"}:
        assert re.search(rf"^\| `{key}` \| [^|]*\bppo\b", page, re.MULTILINE), key
    assert (out / "value" / "model.safetensors").is_file()


@pytest.mark.parametrize("adapters", [0, 4])
@BOTH
def test_a_stopped_run_resumes_exactly(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: PPOConfig, adapters: int
) -> None:
    """The penalty's coefficient, too."""
    config = replace(config, lora_rank=adapters, value_epochs=3)
    whole = run_ppo(world, tmp_path / "whole", config)
    interrupted(lambda: run_ppo(world, tmp_path / "cut", config), monkeypatch, 2)
    cut = run_ppo(world, tmp_path / "cut", config)
    same_files(whole, cut, ["model.safetensors", "value/model.safetensors"])
    assert metrics(whole) == metrics(cut)


@BOTH
def test_the_budget_holds_them_too(world: World, tmp_path: Path, config: PPOConfig) -> None:
    wild = replace(config, iterations=20, update_kl=0.5, lr=0.03, kl_budget=2.0, ema=0.0)
    out = run_ppo(world, tmp_path / "out", wild)
    *learned, breach = metrics(out)
    assert "exceeded the budget of 2.0 nats" in results(out)["stopped"]
    assert breach["kl"] > 2.0 and all(line["kl"] <= 2.0 for line in learned) and "update_kl" not in breach


@BOTH
def test_a_reward_for_a_word_is_optimised(world: World, tmp_path: Path, config: PPOConfig) -> None:
    """As with the clip: the score rises by several times its start."""
    comparisons = counted(tmp_path / "c.jsonl", 300, by_count)
    reward(world.sft, (comparisons,), tmp_path / "rm", (world.demos,), config=replace(REWARD, epochs=3, batch=16))
    longer = replace(
        config, iterations=32, batch=32, minibatch=32, lr=3e-3, value_lr=3e-3, missing_end=5.0, update_kl=0.03
    )
    lines = metrics(run_ppo(world, tmp_path / "out", longer, reward=tmp_path / "rm"))
    assert sum(line["score"] for line in lines[-4:]) / 4 > sum(line["score"] for line in lines[:2]) / 2 + 4


# ---- TRPO


def moved(model: Any, vector: torch.Tensor, share: float) -> None:
    with torch.no_grad():
        for weight, piece in zip(
            trainable(model).values(), vector.split([w.numel() for w in trainable(model).values()]), strict=True
        ):
            weight.add_(share * piece.view_as(weight))


def every_logprob(bench: Bench, rows: range) -> torch.Tensor:
    """(N, V): log pi of all tokens at each response token of these rows, each row run alone, without its padding."""
    found, responses = [], bench.rollout.responses
    for row in rows:
        start, length = int(responses.starts[row]), int(responses.mask[row].sum())
        with torch.no_grad():
            logits = bench.learner.policy(responses.ids[row : row + 1, : start + length])[0].double()
        found.append(logits[start - 1 : start + length - 1].log_softmax(-1))
    return torch.cat(found)


@pytest.mark.parametrize("adapters", [0, 4])
def test_fisher_products_of_a_model_by_definition(world: World, tmp_path: Path, adapters: int) -> None:
    """v'Fv = mean over states of sum_a pi(a) (d log pi(a) along v)^2, the derivative by central differences."""
    bench = Bench(world, tmp_path / "bench", world.reward, replace(TRPO, batch=4, lora_rank=adapters))
    policy = bench.learner.policy
    count = sum(w.numel() for w in trainable(policy).values())
    v = torch.randn(count, generator=torch.Generator().manual_seed(1)) / count**0.5
    moved(policy, v.flip(0), 1.0)  # adapters whose B is not 0
    product = response_fisher(policy, bench.rollout.responses, 1.0)(v)
    at = every_logprob(bench, range(4)).exp()
    width = 3e-2
    moved(policy, v, width)
    ahead = every_logprob(bench, range(4))
    moved(policy, v, -2 * width)
    slope = (ahead - every_logprob(bench, range(4))) / (2 * width)
    expected = (at * slope.square()).sum(-1).mean()
    assert float(v @ product) == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize("adapters", [0, 4])
def test_a_step_goes_as_far_as_it_may(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapters: int
) -> None:
    """KL(pi_old || pi) over the whole vocabulary is the limit, where the Fisher matrix has seen all the tokens."""
    monkeypatch.setattr(trust_region, "FISHER_EVERY", 1)
    monkeypatch.setattr(trust_region, "line_search", lambda measure, limit, halvings: (1.0, *measure(1.0)))
    bench = Bench(world, tmp_path / "bench", world.reward, replace(TRPO, batch=16, lora_rank=adapters))
    advantages, _ = estimate(bench.rollout, bench.config)
    before, mask = every_logprob(bench, range(16)), bench.rollout.responses.mask
    step = trust_region_step(bench.learner, bench.rollout, advantages, [torch.arange(16)], limit=3e-4, temperature=1.0)
    after = every_logprob(bench, range(16))
    assert float((before.exp() * (before - after)).sum(-1).mean()) == pytest.approx(3e-4, rel=0.05)
    chosen = (after - before).gather(1, bench.rollout.responses.tokens[mask][:, None])[:, 0]
    assert step["update_kl"] == pytest.approx(float((chosen.exp() - 1 - chosen).mean()), rel=0.01)
    assert step["update_kl"] > 3.3e-4  # the tokens that were learned from move more than the others
    gain = float(((chosen.exp() - 1) * advantages[mask]).mean())
    assert -step["policy_loss"] == pytest.approx(gain, abs=1e-4) and gain > 0  # whitened: 0 before


def test_a_step_that_never_serves_is_not_taken(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A direction in which everything gets worse: after all halvings the weights are what they were, bit for bit."""
    bench = Bench(world, tmp_path / "bench", world.reward, TRPO)
    advantages, _ = estimate(bench.rollout, bench.config)
    right = trust_region.natural_step
    monkeypatch.setattr(trust_region, "natural_step", lambda *given, **named: -right(*given, **named))
    before = [w.detach().clone() for w in trainable(bench.learner.policy).values()]
    step = trust_region_step(bench.learner, bench.rollout, advantages, [torch.arange(8)], limit=1e-3, temperature=1.0)
    assert (step["step_share"], step["update_kl"]) == (0.0, 0.0)
    for now, then in zip(trainable(bench.learner.policy).values(), before, strict=True):
        assert torch.equal(now, then)


def test_minibatches_do_not_change_the_step(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They only bound the memory: one of 8 and four of 2 rows have the same gradient, and end at the same weights.

    The step is compared without rounded lengths: it divides the gradient's rounding errors by the damping, so more
    padding in some parts than in others ends up to 5e-5 away.
    """
    gradients, ends = [], []
    for size in (8, 2):
        bench = Bench(world, tmp_path / f"bench{size}", world.reward, TRPO)
        advantages, _ = estimate(bench.rollout, bench.config)
        parts = torch.randperm(8, generator=torch.Generator().manual_seed(0)).sort().values.split(size)
        gradients.append(
            trust_region.surrogate_gradient(bench.learner.policy, bench.rollout, advantages, parts, 1.0)[0]
        )
        with monkeypatch.context() as patched:
            patched.setattr(rollout, "STEP", 1)
            patched.setattr(rollout, "rounded", lambda length: length)
            trust_region_step(bench.learner, bench.rollout, advantages, parts, limit=1e-3, temperature=1.0)
        ends.append(torch.cat([w.detach().flatten() for w in trainable(bench.learner.policy).values()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-6 * float(gradients[0].abs().max()), rtol=0.0)
    torch.testing.assert_close(ends[0], ends[1], atol=2e-5, rtol=1e-3)


# ---- the penalty


def test_the_coefficient_follows_what_was_measured(world: World, tmp_path: Path) -> None:
    """Each iteration pays what the one before has set, by hand from the logged KL."""
    lines = metrics(run_ppo(world, tmp_path / "out", replace(PENALTY, iterations=6, lr=3e-3, update_kl=1e-2)))
    coef = 1.0
    for line in lines:
        assert line["penalty_coef"] == pytest.approx(coef)
        coef *= 2 if line["update_kl"] > 0.015 else 0.5 if line["update_kl"] < 0.01 / 1.5 else 1
    assert len({line["penalty_coef"] for line in lines}) > 1


def test_a_high_penalty_keeps_the_policy_near(world: World, tmp_path: Path) -> None:
    """The same rate, the same rollout: with a coefficient of 1,024 an iteration moves the policy much less."""
    far = []
    for name, coef in (("free", 1e-9), ("dear", 1024.0)):
        config = replace(PENALTY, batch=16, minibatch=16, epochs=8)
        bench = Bench(world, tmp_path / name, world.reward, config)
        bench.learner.penalty_coef = coef
        found = improve(bench.learner, bench.rollout, *estimate(bench.rollout, config), config, torch.Generator(), 9)
        far.append(found["update_kl"])
    assert far[1] < far[0] / 3


def test_what_an_update_moved_is_measured_on_all_tokens(world: World, tmp_path: Path) -> None:
    bench = Bench(world, tmp_path / "bench", world.reward, PENALTY)
    assert adapt_penalty(bench.learner, bench.rollout, [torch.arange(8)], PENALTY)["update_kl"] == pytest.approx(0.0)
    assert bench.learner.penalty_coef == 0.5  # nothing moved: half the coefficient
    before = every_logprob(bench, range(8))
    count = sum(w.numel() for w in trainable(bench.learner.policy).values())
    moved(bench.learner.policy, torch.randn(count, generator=torch.Generator().manual_seed(2)), 1e-2)
    log_ratio = every_logprob(bench, range(8)) - before
    chosen = log_ratio.gather(1, bench.rollout.responses.tokens[bench.rollout.responses.mask][:, None])
    found = adapt_penalty(bench.learner, bench.rollout, list(torch.arange(8).split(3)), PENALTY)
    assert found["update_kl"] == pytest.approx(float((chosen.exp() - 1 - chosen).mean()), rel=1e-3)


# ---- settings


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["--update", "trpo"], "--update trpo: TRPO cannot mix in a pretraining loss; add --no-ptx"),
        (["--update", "trpo", "--no-ptx", "--epochs", "2"], "TRPO takes one step a rollout; use --value-epochs"),
        (["--update", "penalty", "--update-kl", "0"], "--update penalty --update-kl 0: the policy could not move"),
    ],
)
def test_settings_without_a_meaning(
    settings: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["ppo", "--policy", "x", "--reward", "x", "--prompts", "x", "--out", str(tmp_path / "out"), *settings]
    with pytest.raises(SystemExit) as end:
        cli.main(asked)
    said = capsys.readouterr().err
    assert end.value.code == 2 and complaint in said and said.count("\n") == 1
