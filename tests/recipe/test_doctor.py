"""`tutelage doctor`: every fact has a line, missing packages are named, the matrix speed is right; PPO's checks."""

import importlib.metadata
import time
from typing import Any

import pytest
import torch

from tutelage.cli import main
from tutelage.recipe import rl_selftest
from tutelage.recipe.doctor import doctor
from tutelage.rlhf import learner, trust_region
from tutelage.runs.machine import gemm_rate, missing_extras
from tutelage.stages import ppo


def test_the_matrix_speed_agrees_with_a_clock_around_it() -> None:
    """2 n^3 operations per product: the best of the repeats lies near their mean, or somewhat above it."""
    left = torch.randn(512, 512)
    left @ left  # thread pools and kernel choice
    start = time.perf_counter()
    for _ in range(20):
        left @ left
    mean_rate = 20 * 2 * 512**3 / (time.perf_counter() - start) / 1e9
    assert 0.3 * mean_rate < gemm_rate(torch.float32, size=512) < 10 * mean_rate


def test_missing_packages_are_named_under_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = [
        "torch>=2",
        "absent-thing>=1; extra == 'demo'",
        'pytest>=8; extra == "dev"',
        "also.absent; extra == 'demo'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    assert missing_extras() == {"demo": ["absent-thing", "also.absent"]}


def test_doctor_shows_every_fact(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    out = capsys.readouterr().out
    for fact in (
        "machine",
        "cores",
        "memory",
        "python",
        "versions",
        "device",
        "precision",
        "matrix speed",
        "free disk",
    ):
        assert any(line.startswith(fact) for line in out.splitlines()), fact
    assert f"torch {torch.__version__}" in out


# --- --rl


def test_the_installed_ppo_passes_its_checks(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(rl=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.startswith("pass  ") for line in lines)
    # The optimum and the mean length by hand: algebra on seven responses; (1 - .7^12) / .3.
    for line, update in zip(lines, ("PPO", "PPO-penalty", "TRPO"), strict=False):
        assert f"optimum, {update}: " in line and "of 0.8483" in line and "of 1.268 nats" in line
    assert "of 3.29" in lines[3]


def whitened(original: Any) -> Any:
    """Rewards whitened with their mean kept: a zero is no longer zero, so every token gains or costs something."""

    def mutant(scores: Any, logprobs: Any, ref_logprobs: Any, mask: Any, *, kl_coef: float) -> Any:
        rewards = original(scores, logprobs, ref_logprobs, mask, kl_coef=kl_coef)
        mean, spread = rewards[mask].mean(), rewards[mask].std(unbiased=False)
        return torch.where(mask, (rewards - mean) / (spread + 1e-8) + mean, 0.0)

    return mutant


def test_a_failing_check_is_a_bug_in_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ppo, "shaped_rewards", whitened(ppo.shaped_rewards))
    monkeypatch.setattr(rl_selftest, "checks", lambda: iter([rl_selftest.length_check()]))
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", "--rl"])
    printed = capsys.readouterr()
    assert exit_.value.code == 1
    assert printed.out.startswith("FAIL  no length bias: mean 1.")
    assert "a bug in tutelage or a broken installation" in printed.err and len(printed.err.splitlines()) == 1


def test_a_ratio_off_one_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    original = learner.response_logprobs
    monkeypatch.setattr(learner, "response_logprobs", lambda policy, responses, t: original(policy, responses, 1.3 * t))
    monkeypatch.setattr(
        trust_region, "response_logprobs", lambda policy, responses, t: original(policy, responses, 1.3)
    )
    for update in ("clip", "trpo"):
        check = rl_selftest.optimum_check(update)
        assert not check.passed and "the ratio is off 1" in check.details
