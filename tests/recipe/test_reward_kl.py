"""benchmarks/reward_kl.py on a toy demo: every algorithm's points, the demo's own figures again, killed and resumed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tutelage.learning.kl import best_of_n_kl_bound
from tutelage.recipe.preset import BASED

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("chitchat_dataset", "chatterbot_corpus", "networkx")),
    reason="the packages of the extra [demo] are not installed",
)
PROGRAM = Path(__file__).parents[2] / "benchmarks" / "reward_kl.py"
EXPECTED = {
    "sft": ["start"],
    **{name: ["1", "2", "end"] for name in ("ppo-ptx", "ppo", "ppo-4-epochs", "rloo", "grpo")},
    "dpo": ["1", "end"],
    "best-of-n": ["1", "2", "4", "8", "16"],
}


def lines_in(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.is_file() else []


def killed(words: list[str], ready: Callable[[], bool]) -> None:
    """kill -9 of the program as soon as it is so far; a training it started has lost its listener."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_every_point_is_measured_once_however_often_it_is_killed(demo: tuple[Path, str], tmp_path: Path) -> None:
    out, toy = tmp_path / "curves", demo[0]
    words = [sys.executable, str(PROGRAM), str(toy), "--preset", "toy", "--count", "12", "--out", str(out)]
    points, learning = out / "toy" / "points.jsonl", out / "toy" / "ppo-ptx" / "metrics.jsonl"
    killed(words, lambda: bool(lines_in(learning)))
    killed(words, lambda: len(lines_in(points)) >= 4)
    before = lines_in(points)
    with open(points, "a") as file:
        file.write(before[0][:40])  # the power went while a line was written
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already done") == 6
    after = lines_in(points)
    assert after[: len(before)] == before
    found: dict[str, list[str]] = {}
    for point in map(json.loads, after):
        found.setdefault(point["algorithm"], []).append(point["step"])
    assert found == EXPECTED
    assert (out / "reward_kl.png").read_bytes().startswith(b"\x89PNG")
    rows = [row for row in (out / "reward_kl.md").read_text().splitlines() if row.startswith("| toy |")]
    assert len(rows) == len(after)
    left = json.loads((out / "reward_kl.json").read_text())["figures"]["toy"]
    assert left == [{key: value for key, value in json.loads(line).items() if key != "golds"} for line in after]
    only_the_chosen_algorithms(words, after)
    the_demos_own_figures(toy, {(p["algorithm"], p["step"]): p for p in map(json.loads, after)})


def only_the_chosen_algorithms(words: list[str], measured: list[str]) -> None:
    """One algorithm of those that are there; then two with other settings; then one they cannot have."""
    out = Path(words[-1])
    subprocess.run([*words, "--algorithms", "dpo"], check=True, capture_output=True, timeout=300)
    table = [row for row in (out / "reward_kl.md").read_text().splitlines() if row.startswith("|")]
    rows = [row.split("|")[2:4] for row in table[2:]]
    assert [[cell.strip() for cell in row] for row in rows] == [["sft", "start"], ["dpo", "1"], ["dpo", "end"]]
    assert lines_in(out / "toy" / "points.jsonl") == measured
    other = out.with_name("far")
    free = ["--algorithms", "ppo", "rloo", "--iterations", "1", "--kl-coef", "0", "--kl-budget", "50"]
    subprocess.run([*words[:-1], str(other), *free], check=True, capture_output=True, timeout=300)
    assert {path.parent.name for path in (other / "toy").glob("*/run.json")} == {"ppo", "rloo"}
    for name in ("ppo", "rloo"):
        config = json.loads((other / "toy" / name / "run.json").read_text())["config"]
        assert (config["iterations"], config["kl_coef"], config["kl_budget"]) == (1, 0.0, 50.0)
    done = subprocess.run([*words, "--lora-layers", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "--lora-layers" in done.stderr.splitlines()[-1]


def the_demos_own_figures(toy: Path, points: dict[tuple[str, str], Any]) -> None:
    """The demo trained and evaluated two of these policies, and SFT, with the same seed, prompts and settings."""
    theirs = json.loads((toy / "evaluate" / "evaluation.json").read_text())["models"]
    for place, name in ((("sft", "start"), "sft"), (("ppo", "end"), "ppo"), (("ppo-ptx", "end"), "ppo-ptx")):
        for mine, figure in (("gold", "gold"), ("reward", "reward"), ("bits_per_byte", "bits_per_byte")):
            assert points[place][mine] == pytest.approx(theirs[name][figure], abs=1e-6), (place, mine)
        if name != "sft":
            assert points[place]["kl"] == pytest.approx(theirs[name]["kl"], abs=1e-6)
            assert points[place]["win_rate"] == theirs[name]["gold_win_rate"]
    best = points["best-of-n", "16"]  # of sixteen there is one choice of sixteen
    assert best["reward"] == pytest.approx(theirs["best-of-16"]["reward"], abs=1e-6)
    assert best["gold"] == pytest.approx(theirs["best-of-16"]["gold"], abs=1e-6)
    assert best["kl"] == best_of_n_kl_bound(16) and best["kl_is_bound"]
    ladder = [points["best-of-n", step]["reward"] for step in EXPECTED["best-of-n"]]
    assert ladder == sorted(ladder)
    for point in points.values():
        assert point["gold_ci"][0] <= point["gold"] <= point["gold_ci"][1]
        assert point["gold"] == pytest.approx(sum(point["golds"]) / len(point["golds"]))


def test_what_is_no_demo_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), str(tmp_path)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no finished demo" in done.stderr


def test_with_reward_layers_a_reward_model_is_trained_first(tmp_path: Path) -> None:
    from reward_kl import Experiment

    demo, out = tmp_path / "demo", tmp_path / "out"
    (demo / "imported").mkdir(parents=True)
    ranking = {"prompt": [{"role": "user", "content": "hello"}], "responses": ["hi", "what"], "ranks": [1, 2]}
    (demo / "comparisons.jsonl").write_text(json.dumps(ranking) + "\n")
    theirs = Experiment(demo, out, BASED["toy"], 0, 2, {"lora_layers": 2}, ("ppo-ptx",))
    own = replace(theirs, reward_layers=2)
    (reward,), (ppo,), (same,) = own.own_reward(), own.plan(), theirs.plan()
    assert reward.config == replace(theirs.recipe["reward"].config, lora_layers=2)
    assert reward.inputs == theirs.recipe["reward"].inputs
    assert reward.out == reward.record == ppo.inputs["reward"] == out / "reward"
    assert theirs.own_reward() == [] and same.inputs["reward"] == demo / "reward"
    assert ppo.config == same.config and ppo.config.lora_layers == 2
