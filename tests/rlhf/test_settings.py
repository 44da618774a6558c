"""Settings that PPO, RLOO and GRPO refuse: single numbers and combinations with which no run is possible.

Each is one line before anything is loaded, and its neighbour that means something is taken.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from tutelage import cli
from tutelage.stages.grpo import GRPOConfig
from tutelage.stages.ppo import PPOConfig
from tutelage.stages.rloo import RLOOConfig

TARGET = ["--kl-target", "6"]
ALIKE = [
    (["--ema", "1"], "--ema 1: must be below 1; at 1 the saved policy would never change"),
    (["--ema", "9"], "--ema 9: must be below 1"),
    (["--min-answer", "41"], "--min-answer 41: no response would be long enough; --max-tokens is 40"),
    (["--missing-end", "-1"], "--missing-end -1: must be at least 0"),
    (["--temperature", "0"], "--temperature 0: must be at least 0.01"),
    (["--temperature", "1e-6"], "--temperature 1e-06: must be at least 0.01"),
    ([*TARGET, "--kl-gain", "5"], "--kl-gain 5: must be above 0 and below 5 for --kl-coef to follow"),
    ([*TARGET, "--kl-gain", "9"], "--kl-gain 9: must be above 0 and below 5"),
    ([*TARGET, "--kl-gain", "0"], "--kl-gain 0: must be above 0 and below 5"),
    ([*TARGET, "--kl-coef", "0"], "--kl-target 6 --kl-coef 0: a coefficient of 0 cannot be adapted"),
    (["--kl-target", "10"], "--kl-target 10: the run would stop at --kl-budget 8 before it gets there"),
    ([*TARGET, "--kl-budget", "6"], "--kl-target 6: the run would stop at --kl-budget 6 before it gets there"),
]
PPO = [
    (["--lam", "95"], "--lam 95: must be at most 1"),
    (["--gamma", "1.5"], "--gamma 1.5: must be at most 1"),
]


@pytest.mark.parametrize(
    ("verb", "settings", "complaint"),
    [(verb, *case) for verb in ("ppo", "grpo") for case in ALIKE] + [("ppo", *case) for case in PPO],
)
def test_settings_without_a_meaning(
    verb: str, settings: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [verb, "--policy", "x", "--reward", "x", "--prompts", "x", "--out", str(tmp_path / "out"), *settings]
    with pytest.raises(SystemExit) as end:
        cli.main(asked)
    said = capsys.readouterr().err
    assert end.value.code == 2 and complaint in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [PPOConfig(), RLOOConfig(), GRPOConfig()], ids=["ppo", "rloo", "grpo"])
def test_what_is_next_to_them_is_taken(config: PPOConfig | RLOOConfig | GRPOConfig) -> None:
    replace(config, ema=0.999, temperature=0.01)
    replace(config, min_answer=40, missing_end=0.0)
    replace(config, kl_target=7.9, kl_gain=4.9)
    replace(config, kl_target=10.0, kl_budget=20.0)
    replace(config, kl_coef=0.0, kl_budget=0.0)  # nothing is steered
    if isinstance(config, PPOConfig):
        replace(config, lam=1.0, gamma=1.0)
        replace(config, lam=0.0, gamma=0.0)
