"""The monitor of a reinforcement-learning run: it finds nothing on healthy curves and names each fault once.

The healthy curve follows the ranges that the literature and our own runs show. Each faulty curve is the healthy one
with one metric changed. `test_ppo_monitor.py` tests real runs.
"""

import json
import math
import random

import pytest

from tutelage.errors import InputError
from tutelage.rlhf.diagnostics import CHECKS
from tutelage.rlhf.history import Limits, mean
from tutelage.rlhf.monitor import Finding, Monitor, report

Curve = dict[str, list[float]]


def healthy(count: int = 36, seed: int = 0) -> Curve:
    """KL from 0 to 8 nats, entropy slowly down, length up and back down, a value network that takes 5 iterations."""
    chance = random.Random(seed)
    part = [i / (count - 1) for i in range(count)]

    def noisy(values: list[float], spread: float) -> list[float]:
        return [value + chance.gauss(0, spread) for value in values]

    kl = [0.0, *noisy([8 * t * t for t in part[1:]], 0.02)]
    score = noisy([0.2 + 1.5 * t for t in part], 0.1)
    return {
        "kl": kl,
        "kl_k3": [0.0, *(1e-4 + 0.4 * t * t for t in part[1:])],
        "kl_coef": [0.02] * count,
        "score": score,
        "score_std": noisy([1 - 0.6 * t for t in part], 0.05),
        "objective": [s - 0.02 * k for s, k in zip(score, kl, strict=True)],
        "entropy": noisy([4.2 - t for t in part], 0.1),
        "explained_variance": [-3.0, -1.0, -0.4, -0.1, *noisy([0.3] * (count - 4), 0.15)],
        "length": noisy([16 + 10 * math.sin(3 * t) for t in part], 1),
        "end_of_turn_rate": [min(1.0, x) for x in noisy([1 - 0.3 * math.sin(3 * t) for t in part], 0.03)],
        "sampler_gap": [1e-5] * count,
        "clip_fraction": [0.0] * count,
        "step_share": [1.0] * count,
        "approx_kl": [3e-3] * count,
        "ptx_gradient_ratio": noisy([1 - 0.5 * t for t in part], 0.05),
        "ptx_loss": noisy([4.5 - 0.2 * t for t in part], 0.1),
        "judge_score": noisy([0.1 + 1.2 * t for t in part], 0.1),
    }


def findings_of(
    curve: Curve, dtype: str = "torch.float32", share: float = 1.0, algorithm: str = "PPO"
) -> list[Finding]:
    monitor = Monitor(Limits(dtype, 40, share, algorithm))
    for i in range(len(curve["kl"])):
        measured = {key: values[i] for key, values in curve.items()}
        steps = ("clip_fraction", "approx_kl", "step_share", "ptx_gradient_ratio", "ptx_loss")
        learned = {key: measured.pop(key) for key in steps if key in measured}
        monitor.record(i, measured)
        monitor.record(i, measured | learned)
    return monitor.findings


def names(curve: Curve, dtype: str = "torch.float32") -> set[str]:
    return {finding.name for finding in findings_of(curve, dtype)}


@pytest.mark.parametrize("seed", range(20))
def test_healthy_curves_are_left_alone(seed: int) -> None:
    assert findings_of(healthy(seed=seed)) == []


def after(curve: Curve, key: str, start: int, value: float) -> list[float]:
    return curve[key][:start] + [value] * (len(curve[key]) - start)


FAULTS = {
    "not finite": ("score", 7, math.nan),
    "KL not 0 at the start": ("kl_k3", 0, 0.02),
    "sampler gap": ("sampler_gap", 0, 0.06),
    "KL negative": ("kl", 1, -0.12),
    "KL exploding": ("kl", 20, 31.0),
    "KL far from SFT": ("kl", 20, 60.0),
    "objective falling": ("score", 20, -3.0),
    "end of turn rare": ("end_of_turn_rate", 12, 0.4),
    "end of turn lost": ("end_of_turn_rate", 12, 0.01),
    "length at its limit": ("length", 12, 39.5),
    "length collapsed": ("length", 12, 1.1),
    "entropy low": ("entropy", 20, 0.6),
    "entropy collapsed": ("entropy", 20, 0.01),
    "entropy rising": ("entropy", 5, 6.9),
    "value network blind": ("explained_variance", 0, -0.3),
    "pretraining share out of range": ("ptx_gradient_ratio", 10, 0.02),
    "pretraining loss rising": ("ptx_loss", 10, 4.9),
    "clip fraction high": ("clip_fraction", 10, 0.45),
    "update too far": ("approx_kl", 10, 0.015),
    "policy stands still": ("kl_k3", 1, 1e-8),
    "line search failing": ("step_share", 10, 0.0),
    "scores alike": ("score_std", 10, 0.001),
}
ALSO = {  # findings that a fault causes as well
    "end of turn lost": {"end of turn rare"},
    "KL far from SFT": {"KL exploding"},  # here it gets there in one iteration
    "entropy collapsed": {"entropy low"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_once(name: str) -> None:
    curve = healthy()
    key, start, value = FAULTS[name]
    found = findings_of(curve | {key: after(curve, key, start, value)})
    assert {finding.name for finding in found} == {name} | ALSO.get(name, set())
    assert len(found) == len({finding.name for finding in found})
    finding = next(finding for finding in found if finding.name == name)
    assert finding.iteration >= start
    assert "likely" in finding.words and "; " in finding.words  # the numbers, a cause, a move


def test_every_check_is_tested_here() -> None:
    assert {name for name, _, _ in CHECKS} == FAULTS.keys() | {"over-optimisation", "judge below its start"}


def test_a_jump_of_the_kl_is_not_a_long_way() -> None:
    """Each names another cause and another option."""
    curve = healthy()
    (jump,) = findings_of(curve | {"kl": after(curve, "kl", 20, 31.0)})
    (far,) = findings_of(curve | {"kl": [1.8 * i for i in range(36)]})
    assert jump.iteration == 20 and "in one iteration" in jump.words and "lower --lr" in jump.words
    assert far.iteration == 28 and "in one iteration" not in far.words and "raise --kl-coef" in far.words


@pytest.mark.parametrize("algorithm", ["PPO", "RLOO", "PPO-penalty", "TRPO"])
def test_standing_still_is_seen_without_a_clip(algorithm: str) -> None:
    """Most algorithms have none; TRPO has no rate either."""
    curve = healthy() | {"kl_k3": [0.0, *[1e-8] * 35]}
    if algorithm != "PPO":
        del curve["clip_fraction"]
    (finding,) = findings_of(curve, algorithm=algorithm)
    assert finding.name == "policy stands still" and finding.iteration == 9
    assert f"raise {'--update-kl' if algorithm == 'TRPO' else '--lr'}" in finding.words
    moving = healthy() | {"kl_k3": [0.0, *[1e-8] * 8, *[1e-3] * 27]}
    assert findings_of(moving, algorithm=algorithm) == []


@pytest.mark.parametrize("algorithm", ["PPO", "RLOO", "Dr. GRPO", "TRPO"])
def test_what_is_found_names_the_algorithm(algorithm: str) -> None:
    """And the option that it has."""
    curve = healthy()
    faulty = curve | {"ptx_gradient_ratio": [0.02] * 36, "score": after(curve, "score", 20, -3.0)}
    falling, share = (
        finding.words for finding in sorted(findings_of(faulty, algorithm=algorithm), key=lambda f: f.name)
    )
    assert f"what {algorithm} maximises" in falling and f"times {algorithm}'s" in share
    assert "lower --update-kl" in falling if algorithm == "TRPO" else "lower --lr" in falling


def test_a_score_that_rises_while_the_judge_falls() -> None:
    curve = healthy()
    peak = [x - 0.12 * max(0, i - 18) for i, x in enumerate(curve["judge_score"])]
    finding, lost = findings_of(curve | {"judge_score": peak})
    assert finding.name == "over-optimisation" and 20 < finding.iteration <= lost.iteration
    assert lost.name == "judge below its start" and lost.verdict == "stop"  # the fall warns, where it ends stops
    assert mean(peak[lost.iteration - 4 : lost.iteration + 1]) < mean(peak[:5])
    shallow = [x - 0.06 * max(0, i - 18) for i, x in enumerate(curve["judge_score"])]
    assert {finding.name for finding in findings_of(curve | {"judge_score": shallow})} <= {"over-optimisation"}
    assert findings_of(curve | {"judge_score": peak, "score": peak}) == []  # both fall: learning fails, not the judge


def test_a_share_too_large_is_named_too() -> None:
    curve = healthy()
    assert names(curve | {"ptx_gradient_ratio": [20.0] * 36}) == {"pretraining share out of range"}
    small = curve | {"ptx_gradient_ratio": [0.05] * 36}  # as `--ptx-share .05` asks for
    assert findings_of(small, share=0.05) == [] and names(small) == {"pretraining share out of range"}


def test_short_spells_are_noise() -> None:
    """Four iterations are not several; a single negative KL, a dip of the value network happen."""
    for name in (
        "KL negative", "end of turn rare", "entropy low", "clip fraction high", "update too far"
    ):  # fmt: skip
        curve = healthy()
        key, _, value = FAULTS[name]
        spell = curve[key][:15] + [value] * 4 + curve[key][19:]
        assert name not in names(curve | {key: spell}), name


@pytest.mark.parametrize("fall", [[1.3], [20.0, 1.3], [24.0, 13.0, 7.0, 4.0], [18.0, 8.5], [30.0, 12.0, 3.8]])
@pytest.mark.parametrize("start", [1, 4, 20])
def test_responses_that_collapse_are_named_within_three_iterations(fall: list[float], start: int) -> None:
    """Whatever is left of them, and before the rule of five iterations; the entropy that falls with it is named, too.

    From 37 of 40 tokens: `start` is the first rollout that is shorter.
    """
    curve = healthy() | {"length": [37.0] * 36}
    curve["length"][start:] = (fall + [fall[-1]] * 36)[: 36 - start]
    (finding,) = findings_of(curve)
    assert finding.name == "length collapsed" and start < finding.iteration <= start + 3
    assert "37.0 at the start" in finding.words and "--min-answer" in finding.words
    curve["entropy"] = [x * (0.4 if i >= start else 1) for i, x in enumerate(curve["entropy"])]
    assert {"length collapsed", "entropy low"} == {f.name for f in findings_of(curve) if f.iteration <= start + 3}


def test_a_policy_that_learns_to_stop_has_not_collapsed() -> None:
    """Most of its first responses were cut. One short rollout is noise; short from the start is no collapse."""
    curve = healthy()
    shorter = [37.0 - min(i, 18) for i in range(36)]  # down to 19
    assert names(curve | {"length": shorter}) == set()
    assert names(curve | {"length": [37.0] * 10 + [9.0] + [37.0] * 25}) == set()
    assert names(curve | {"length": [2.5] * 20 + [1.4] * 16}) == set()
    half = [x * (0.4 if i >= 10 else 1) for i, x in enumerate(curve["entropy"])]
    assert names(curve | {"length": shorter, "entropy": half}) == set()


@pytest.mark.parametrize(
    ("key", "blamed"), [("score", "the reward model overflows, or a step"), ("judge_score", "the judge overflows, or"),
                        ("objective", "a step destroyed the policy"), ("kl", "a step destroyed the policy")],
)  # fmt: skip
def test_what_is_not_finite_is_laid_at_the_right_door(key: str, blamed: str) -> None:
    curve = healthy()
    (finding,) = findings_of(curve | {key: after(curve, key, 7, math.nan)})
    assert f"{key} is nan or infinite; likely {blamed}" in finding.words
    assert ("reward model" in finding.words) == (key == "score")


def test_an_adaptive_kl_coefficient_makes_no_objective_fall() -> None:
    """The objective at the first coefficient counts; the logged one, at a larger coefficient, falls."""
    curve = healthy() | {"kl_coef": [0.02] * 5 + [0.5] * 31}
    steered = curve | {"objective": [s - b * k for s, b, k in zip(*(curve[x] for x in ("score", "kl_coef", "kl")))]}
    assert steered["objective"][-1] < -1 and findings_of(steered) == []


def test_around_0_a_kl_may_be_negative_for_long() -> None:
    """The noise of k1 at a batch of 64, while the policy has hardly moved."""
    curve = healthy()
    assert names(curve | {"kl": [0.0] + [-0.02] * 9 + curve["kl"][10:]}) == set()


def test_bf16_is_given_more_room() -> None:
    curve = healthy() | {"sampler_gap": [0.05] * 36}  # SmolLM2 with merged adapters
    assert names(curve) == {"sampler gap"}
    assert names(curve, "torch.bfloat16") == set()
    assert names(curve | {"sampler_gap": [0.3] * 36}, "torch.bfloat16") == {"sampler gap"}


@pytest.mark.parametrize("at", [1, 3, 5, 8, 14, 21])
def test_after_a_resume_it_finds_the_same(at: int) -> None:
    """Through JSON, as a checkpoint has it."""
    curve = healthy()
    curve |= {"entropy": after(curve, "entropy", 12, 0.01), "length": after(curve, "length", 3, 1.0)}
    lines = [{key: values[i] for key, values in curve.items()} for i in range(36)]
    whole, parts, again = (Monitor(Limits("torch.float32", 40, 1.0, "PPO")) for _ in range(3))
    for i, measured in enumerate(lines):
        whole.record(i, measured)
        if i == at:
            again.load(json.loads(json.dumps(parts.state())))
            assert again.state() == parts.state()
            parts = again
        parts.record(i, measured)
    assert parts.findings == whole.findings and len(whole.findings) == 3
    assert parts.state() == whole.state()


def test_a_policy_is_sound_until_a_limit_is_crossed() -> None:
    curve = healthy()
    monitor, sound = Monitor(Limits("torch.float32", 40, 1.0, "PPO")), []
    ends = after(curve, "end_of_turn_rate", 12, 0.01)
    for i in range(20):
        monitor.record(i, {key: values[i] for key, values in (curve | {"end_of_turn_rate": ends}).items()})
        sound.append(monitor.sound)
    assert sound == [True] * 12 + [False] * 8


def test_what_is_reported() -> None:
    said: list[str] = []
    assert report([Finding(3, "entropy low", "fell; likely x; do y", "warn")], said.append) is None
    assert report([Finding(9, "entropy collapsed", "is 0", "stop")], said.append) == "entropy collapsed at iteration 9"
    assert said == [
        "found at iteration 3: entropy low: fell; likely x; do y", "stopped at iteration 9: entropy collapsed: is 0",
    ]  # fmt: skip
    with pytest.raises(InputError, match="iteration 0: KL not 0 at the start: differ"):
        report([Finding(0, "KL not 0 at the start", "differ", "refuse")], said.append)
