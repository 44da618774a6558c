"""The "ptx" of PPO-ptx: its gradient, its coefficient, its windows; and that without it PPO is plain."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ppo_bench import CONFIG, PLAIN, Bench, run_ppo
from world import World, metrics, results, same_files

from tutelage.data.packing import Windows
from tutelage.errors import InputError
from tutelage.learning.ptx import PretrainingShare
from tutelage.rlhf.pretraining_mix import PretrainingMix, absent_specials, break_tokens, read_windows
from tutelage.sampling.rollout import response_logprobs

transformers = pytest.importorskip("transformers")


def test_without_the_mixture_it_is_plain_ppo(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: with and without a corpus, and as if the mixture's code were not there."""
    a = run_ppo(world, tmp_path / "a", PLAIN)
    b = run_ppo(world, tmp_path / "b", PLAIN, corpus=(world.corpus,))
    same_files(a, b, ["model.safetensors", "value/model.safetensors"])
    assert results(a)["ptx_coef"] == results(b)["ptx_coef"] == 0.0
    # a coefficient of 0 is plain PPO, too, through the mixture's own code
    monkeypatch.setattr(PretrainingShare, "coefficient", 0.0)
    c = run_ppo(world, tmp_path / "c", CONFIG)
    same_files(a, c, ["model.safetensors", "value/model.safetensors"])
    for plain, mixed in zip(metrics(a), metrics(c), strict=True):
        assert plain == {k: v for k, v in mixed.items() if not k.startswith("ptx_")}


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()])


def add_pretraining_gradient(world: World, bench: Bench, ratios: list[float]) -> tuple[torch.Tensor, dict[str, float]]:
    """The stage's own first two windows, under the whole softmax, and what it logs of adding their gradient."""
    mix = mixture(world, bench)
    mix.absent, mix.share.ratios = torch.empty(0, dtype=torch.long), ratios
    loss = mix.loss(bench.learner.policy, 2)
    return mix.windows.batch(0, 2), mix.share.add_gradient(bench.learner.policy.parameters(), loss, calibrate=False)


def mixture(world: World, bench: Bench) -> PretrainingMix:
    windows = read_windows(bench.tokenizer, (world.corpus,), 64, 16, torch.Generator().manual_seed(0))
    return PretrainingMix(windows, absent_specials(bench.tokenizer, windows), torch.device("cpu"), 1.0)


def test_the_gradient_is_the_sum_of_both(world: World, bench: Bench) -> None:
    """g_PPO + coefficient g_ptx, where g_ptx is that of transformers' token mean on the same windows."""
    rollout, learner = bench.rollout, bench.learner
    advantages = torch.randn(rollout.logprobs.shape, generator=torch.Generator().manual_seed(1))
    logprobs = response_logprobs(learner.policy, rollout.responses)
    mask = rollout.responses.mask
    (-(logprobs * advantages)[mask].mean()).backward()  # PPO's gradient at ratio 1
    ppo_gradient = flat_gradient(learner.policy)
    windows, logged = add_pretraining_gradient(world, bench, [2.0, 3.0])
    model = transformers.AutoModelForCausalLM.from_pretrained(world.sft)
    expected_loss = F.cross_entropy(model(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten())
    expected_loss.backward()
    assert logged["ptx_loss"] == pytest.approx(expected_loss.item(), rel=1e-5)
    assert logged["ptx_coef"] == 2.5
    added = flat_gradient(learner.policy) - ppo_gradient
    embedding = learner.policy.embedding.weight.numel()
    theirs = model.model.embed_tokens.weight.grad.flatten()
    torch.testing.assert_close(added[:embedding], 2.5 * theirs, atol=2e-6, rtol=1e-4)
    norms = sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5
    assert logged["ptx_gradient_ratio"] == pytest.approx(2.5 * norms / ppo_gradient.norm().item(), rel=1e-4)


def test_a_zero_reward_leaves_the_pretraining_gradient(world: World, tmp_path: Path) -> None:
    """Advantages of 0: the only way is that of the language model."""
    bench = Bench(world, tmp_path / "bench", world.reward, CONFIG)
    (response_logprobs(bench.learner.policy, bench.rollout.responses) * 0.0).sum().backward()
    windows, _ = add_pretraining_gradient(world, bench, [1.0])
    model = transformers.AutoModelForCausalLM.from_pretrained(world.sft)
    F.cross_entropy(model(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
    ours, theirs = bench.learner.policy.blocks[0].mlp.down.weight.grad, model.model.layers[0].mlp.down_proj.weight.grad
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_the_mixture_does_not_push_the_chats_markers_away(world: World, bench: Bench) -> None:
    """Pretraining text holds the end of a text and no other special token: the softmax is over what it may hold."""
    learner, tokenizer = bench.learner, bench.tokenizer
    mix = mixture(world, bench)
    markers = sorted(set(tokenizer.special.values()) - {tokenizer.end_of_text_id})
    assert mix.absent.tolist() == markers and tokenizer.end_of_turn_id in markers
    loss = mix.loss(learner.policy, 2)
    loss.backward()
    windows = mix.windows.batch(0, 2)
    logits = transformers.AutoModelForCausalLM.from_pretrained(world.sft)(windows[:, :-1]).logits
    logits[..., markers] = -torch.inf
    expected = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradient = learner.policy.embedding.weight.grad
    assert gradient is not None and not gradient[markers].any() and gradient[tokenizer.end_of_text_id].any()


def test_line_breaks_can_be_left_out(world: World, bench: Bench) -> None:
    """Neither a target nor in the softmax: the policy is not taught to go on with another speaker's line."""
    learner, tokenizer = bench.learner, bench.tokenizer
    mix = mixture(world, bench)
    mix = PretrainingMix(mix.windows, mix.absent, torch.device("cpu"), 1.0, break_tokens(tokenizer))
    out = [id for id in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([id])] + [tokenizer.end_of_text_id]
    windows = mix.windows.batch(0, 2)
    targets = windows[:, 1:].flatten()
    learned = torch.tensor([int(target) not in out for target in targets])
    assert 0 < learned.sum() < len(targets)
    loss = mix.loss(learner.policy, 2)
    loss.backward()
    logits = transformers.AutoModelForCausalLM.from_pretrained(world.sft)(windows[:, :-1]).logits.flatten(0, 1)
    logits[:, [*out, *mix.absent.tolist()]] = -torch.inf
    expected = F.cross_entropy(logits[learned], targets[learned])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_coefficient_is_fixed_after_calibration(world: World, tmp_path: Path) -> None:
    """It is the mean of |g_PPO| / |g_ptx| over the first iterations; run.json has it."""
    out = run_ppo(world, tmp_path / "out", replace(CONFIG, iterations=5, ptx_calibration=3))
    lines = metrics(out)
    coefficients = [line["ptx_coef"] for line in lines]
    # The logged ratio is coefficient |g_ptx| / |g_PPO|: from both follows each iteration's own |g_PPO| / |g_ptx|.
    ratios = [line["ptx_coef"] / line["ptx_gradient_ratio"] for line in lines]
    for i in range(3):
        assert coefficients[i] == pytest.approx(sum(ratios[: i + 1]) / (i + 1), rel=1e-4)
    assert lines[0]["ptx_gradient_ratio"] == pytest.approx(1.0, rel=1e-5)
    assert coefficients[2] == coefficients[3] == coefficients[4]
    assert results(out)["ptx_coef"] == pytest.approx(coefficients[4], rel=1e-6)
    assert coefficients[0] != coefficients[1]


def test_the_mixture_may_pull_with_a_part_of_ppos_force(world: World, tmp_path: Path) -> None:
    half = metrics(run_ppo(world, tmp_path / "half", replace(CONFIG, ptx_share=0.5, iterations=2)))
    whole = metrics(run_ppo(world, tmp_path / "whole", replace(CONFIG, iterations=2)))
    assert half[0]["ptx_gradient_ratio"] == pytest.approx(0.5, rel=1e-5)
    assert half[0]["ptx_coef"] == pytest.approx(0.5 * whole[0]["ptx_coef"], rel=1e-6)


def test_the_mixture_repeats_no_window_before_all_were_seen(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    original = Windows.batch

    def batch(self: Windows, start: int, count: int) -> torch.Tensor:
        found = original(self, start, count)
        seen.extend(found.tolist())
        return found

    monkeypatch.setattr(Windows, "batch", batch)
    run_ppo(world, tmp_path / "out", replace(CONFIG, ptx_windows=5, minibatch=4))
    assert len(seen) == 4 * 2 * 5
    assert len({tuple(window) for window in seen}) == len(seen)


def test_ptx_needs_a_corpus(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --corpus FILE, or --no-ptx"):
        run_ppo(world, tmp_path / "out", CONFIG, corpus=())
