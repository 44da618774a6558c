"""The whole recipe on a toy size, through the real command: files, resuming, what runs again and why.

Needs the packages of the extra [demo]. The runs are read with json and transformers.
"""

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.model.gpt import GPT
from tutelage.model.parameters import parameter_count
from tutelage.recipe.preset import PRESETS
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.stages.rank import RankConfig

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("chitchat_dataset", "chatterbot_corpus", "networkx")),
    reason="the packages of the extra [demo] are not installed",
)
transformers = pytest.importorskip("transformers")

MODEL_FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "run.json",
    "metrics.jsonl",
}  # fmt: skip
SCORER_FILES = MODEL_FILES - {"generation_config.json"}
DATA_FILES = {
    f"{kind}.{split}.jsonl" for kind in ("corpus", "demonstrations", "prompts") for split in ("train", "valid", "test")
} - {"corpus.test.jsonl"} | {"panel.json", "report.json", "run.json"}
FIGURES = {
    "gold_win_rate", "gold_win_rate_ci", "reward", "kl", "kl_is_bound", "bits_per_byte", "length", "end_of_turn_rate",
    "distinct_1", "distinct_2", "answer_fit", "nats_under_base",
}  # fmt: skip
MODELS = ["base", "sft", "best-of-4", "best-of-16", "ppo", "ppo-ptx"]
STAGES = ["data", "tokenizer", "pretrain", "sft", "rank", "reward", "ppo", "ppo-ptx", "evaluate", "report"]
WEIGHTS = [
    f"{run}/model.safetensors" for run in ("base", "sft", "reward", "ppo", "ppo/value", "ppo-ptx", "ppo-ptx/value")
]


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tutelage", "demo", "--preset", "toy", "--out", str(out), *more]


def run_demo(out: Path, *more: str) -> str:
    done = subprocess.run(command(out, *more), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def load(path: Path) -> Any:
    """Strict JSON: no NaN, no Infinity."""
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))


def stage_lines(printed: str) -> dict[str, str]:
    """Stage -> its first line that is not progress."""
    lines: dict[str, str] = {}
    for name, line in re.findall(r"^ ?\d+/10 ([a-z-]+) +(.*)$", printed, re.MULTILINE):
        if "left in total" not in line:
            lines.setdefault(name, line)
    return lines


def changed_weights(out: Path, call: Any) -> set[str]:
    """The weight files whose bytes differ after `call`."""
    before = {name: (out / name).read_bytes() for name in WEIGHTS}
    call()
    return {name for name in WEIGHTS if (out / name).read_bytes() != before[name]}


def test_every_file_is_where_it_should_be(demo: tuple[Path, str]) -> None:
    out, _ = demo
    expected = {
        "data": DATA_FILES,
        "tokenizer": {"tokenizer.json", "tokenizer_config.json", "run.json"},
        "base": MODEL_FILES, "sft": MODEL_FILES,
        "comparisons.run": {"run.json"},
        "reward": SCORER_FILES,
        "ppo": MODEL_FILES, "ppo-ptx": MODEL_FILES,
        "ppo/value": SCORER_FILES - {"run.json", "metrics.jsonl"},
        "ppo-ptx/value": SCORER_FILES - {"run.json", "metrics.jsonl"},
        "evaluate": {"evaluation.json", "run.json"},
    }  # fmt: skip
    for folder, names in expected.items():
        found = {path.name for path in (out / folder).iterdir() if path.is_file()}
        assert found - {"metrics.jsonl"} == names - {"metrics.jsonl"}, folder
        assert "metrics.jsonl" in found or "metrics.jsonl" not in names, folder
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "comparisons.jsonl", "demo.json", "report.html", "summary.json"
    }  # fmt: skip
    assert not [path for path in out.rglob("*") if "tmp" in path.name or path.name == "checkpoints"]


def test_the_summary_has_all_figures(demo: tuple[Path, str]) -> None:
    summary = load(demo[0] / "summary.json")
    assert list(summary["models"]) == MODELS
    for name, row in summary["models"].items():
        assert set(row) == FIGURES
        for key, value in row.items():
            if key == "gold_win_rate_ci":
                assert value is None if name == "sft" else 0 <= value[0] <= value[1] <= 1
            elif value is not None and key != "kl_is_bound":
                assert math.isfinite(value)
        assert (row["bits_per_byte"] is None) == row["kl_is_bound"] == name.startswith("best-of-")
    assert list(summary["stages"]) == STAGES
    for stage in summary["stages"].values():
        assert stage["seconds"] > 0 and stage["peak_memory_bytes"] > 50 * 2**20
    assert set(summary["reward_model"]) == {"accuracy", "ceiling"}
    evaluation = load(demo[0] / "evaluate" / "evaluation.json")
    for name in MODELS:
        assert {k: evaluation["models"][name][k] for k in FIGURES} == summary["models"][name]


def test_every_stage_prints_one_line_and_the_end_names_the_chat_command(demo: tuple[Path, str]) -> None:
    out, printed = demo
    assert list(stage_lines(printed)) == STAGES
    assert f"tutelage chat {out / 'ppo-ptx'}" in printed
    assert "GFLOP/s" in printed.splitlines()[0]
    assert "left in total" in printed


def test_each_run_names_what_it_was_made_from(demo: tuple[Path, str]) -> None:
    """The lineage, by hand: the sha256 of a file, and one hash of a folder in all runs that use it."""
    import hashlib

    out, _ = demo
    runs = {name: load(out / name / "run.json") for name in ("base", "sft", "reward", "ppo", "ppo-ptx", "evaluate")}
    corpus = hashlib.sha256((out / "data/corpus.train.jsonl").read_bytes()).hexdigest()
    assert runs["base"]["inputs"]["corpus-0"]["sha256"] == corpus
    assert runs["ppo-ptx"]["inputs"]["corpus-0"]["sha256"] == corpus
    assert not any(name.startswith("corpus") for name in runs["ppo"]["inputs"])
    assert runs["reward"]["inputs"]["base"] == runs["ppo"]["inputs"]["policy"] == runs["evaluate"]["inputs"]["sft"]
    assert runs["ppo"]["config"]["ptx"] is False and runs["ppo-ptx"]["config"]["ptx"] is True
    assert runs["ppo-ptx"]["results"]["ptx_coef"] > 0
    for name in ("ppo", "ppo-ptx"):  # the gold score shows over-optimisation during training
        lines = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()]
        assert all(math.isfinite(line["judge_score"]) for line in lines)
        assert runs[name]["inputs"]["judge"]["sha256"] == runs["evaluate"]["inputs"]["panel"]["sha256"]


def test_running_it_again_leaves_everything(demo: tuple[Path, str]) -> None:
    out, _ = demo
    printed: list[str] = []
    assert not changed_weights(out, lambda: printed.append(run_demo(out)))
    lines = stage_lines(printed[0])
    assert all(lines[name] == "already done" for name in STAGES[:-1]), lines
    assert load(out / "summary.json")["stages"]["pretrain"]["seconds"] > 1  # of the first run, not of this one


def test_after_ctrl_c_it_resumes_to_the_same_bytes(demo: tuple[Path, str], tmp_path: Path) -> None:
    """SIGINT to the whole process group, as a terminal sends it, during PPO; then the same command again."""
    out = tmp_path / "toy"
    for name in ("data", "tokenizer", "base", "sft", "comparisons.run", "reward"):
        shutil.copytree(demo[0] / name, out / name)
    shutil.copy(demo[0] / "comparisons.jsonl", out)
    process = subprocess.Popen(
        command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (out / "ppo" / "metrics.jsonl").is_file() or not (out / "ppo" / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert "stopped; run the same command again to continue" in printed
    assert "Traceback" not in errors
    assert not (out / "ppo" / "run.json").exists()
    lines = stage_lines(run_demo(out))
    assert lines["reward"] == "already done"
    assert "resuming from step" in lines["ppo"]
    for name in WEIGHTS:
        assert (out / name).read_bytes() == (demo[0] / name).read_bytes(), name
    assert load(out / "evaluate/evaluation.json") == load(demo[0] / "evaluate/evaluation.json")


def test_only_what_has_changed_runs_again(demo: tuple[Path, str], tmp_path: Path) -> None:
    """One comparison less: the reward model and the stages that depend on it run again, and the reason is printed."""
    out = tmp_path / "toy"
    shutil.copytree(demo[0], out)
    ranked = out / "comparisons.jsonl"
    ranked.write_text("".join(ranked.read_text().splitlines(keepends=True)[:-1]))
    printed: list[str] = []
    changed = changed_weights(out, lambda: printed.append(run_demo(out)))
    lines = stage_lines(printed[0])
    assert [name for name in STAGES if lines[name] == "already done"] == [
        "data",
        "tokenizer",
        "pretrain",
        "sft",
        "rank",
    ]
    assert lines["reward"] == "running again: comparisons-0 has changed"
    assert lines["ppo"] == "running again: reward has changed"
    assert lines["evaluate"].startswith(
        "running again: policies-0 has changed, policies-1 has changed, reward has changed"
    )
    assert changed == {name for name in WEIGHTS if not name.startswith(("base", "sft"))}


@pytest.mark.slow
def test_another_seed_is_another_demo(demo: tuple[Path, str], tmp_path: Path) -> None:
    """Every stage runs again and says why, and all weights differ."""
    out = tmp_path / "toy"
    shutil.copytree(demo[0], out)
    printed: list[str] = []
    assert changed_weights(out, lambda: printed.append(run_demo(out, "--seed", "1"))) == set(WEIGHTS)
    lines = stage_lines(printed[0])
    for name in STAGES[:-1]:
        assert lines[name].startswith("running again: seed was 0, is 1"), lines
    assert load(out / "summary.json")["seed"] == 1


@pytest.mark.parametrize("run", ["base", "sft", "ppo-ptx"])
def test_transformers_loads_the_models(demo: tuple[Path, str], run: str) -> None:
    """Names and shapes fit; the logits and the ids of a conversation equal ours."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(demo[0] / run, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo[0] / run)
    ours, _ = load_policy(demo[0] / run, choose_device("cpu", "fp32"))
    chat = [{"role": "user", "content": "hello, how are you?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), model(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_demos_budget() -> None:
    """The demo's model size, with its parameters counted by adding up the matrices."""
    preset = PRESETS["demo"]
    tokenizer, pretrain = preset.base  # type: ignore[misc]
    shape = pretrain.shape(tokenizer.vocab_size)
    assert (shape.vocab_size, shape.width, shape.layers, shape.context) == (4096, 256, 4, 256)
    c, heads = 256, shape.head_width * (shape.heads + 2 * shape.kv_heads)
    block = c * heads + shape.heads * shape.head_width * c + 3 * c * shape.hidden + 2 * c + 2 * shape.head_width
    total = 4096 * c + 4 * block + c
    assert parameter_count(GPT(shape)) == total <= 5_000_000
    assert 4 <= preset.rank.answers <= 9 and RankConfig().answers == 4  # InstructGPT: K is 4 to 9
    assert (preset.ppo.kl_budget, preset.ppo.ptx_windows, preset.ppo.ptx_calibration) == (8.0, 16, 5)
    evaluated = preset.evaluate
    assert (evaluated.count, evaluated.per_conversation, evaluated.max_tokens, evaluated.samples) == (300, 2, 40, 12)
