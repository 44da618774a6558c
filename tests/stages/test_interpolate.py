"""Interpolation of two runs: the ends exactly, the middle by numpy, adapters, and what lies on no line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from ppo_bench import CONFIG, run_ppo
from safetensors.numpy import load_file
from test_bad_input import nothing_made, refused
from world import SFT, World

from tutelage import cli
from tutelage.model.gpt import GPT
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy, save_policy
from tutelage.runs.identity import hash_input
from tutelage.stages.interpolate import InterpolateConfig, interpolate
from tutelage.stages.sft import sft

CPU = choose_device("cpu", "fp32")
IDS = torch.tensor([[15, 17, 260, 33, 8, 120, 77, 201, 9, 45]])


@pytest.fixture(scope="module")
def tuned(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_ppo(world, tmp_path_factory.mktemp("rl") / "ppo", replace(CONFIG, iterations=2))


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model.safetensors")


def test_the_ends_are_the_runs_themselves(world: World, tuned: Path, tmp_path: Path) -> None:
    for weight, end in ((0.0, world.sft), (1.0, tuned)):
        interpolate(world.sft, tuned, out := tmp_path / str(weight), InterpolateConfig(weight=weight))
        assert weights(out).keys() == weights(end).keys()
        assert all(np.array_equal(w, weights(end)[name]) for name, w in weights(out).items())


def test_between_them_it_is_the_weighted_mean(world: World, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cli.main(["interpolate", str(world.sft), str(tuned), "--weight", "0.3", "--out", str(out)])
    first, second = weights(world.sft), weights(tuned)
    assert any(not np.array_equal(first[name], second[name]) for name in first)
    for name, found in weights(out).items():
        np.testing.assert_allclose(found, 0.7 * first[name].astype(float) + 0.3 * second[name], atol=1e-6)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(load_policy(out, CPU)[0](IDS), theirs(IDS).logits, atol=1e-4, rtol=1e-4)


def test_the_lineage_is_recorded(world: World, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interpolate(world.sft, tuned, out)
    run = json.loads((out / "run.json").read_text())
    expected = {name: {"path": str(p), "sha256": hash_input(p)} for name, p in (("sft", world.sft), ("rl", tuned))}
    assert (run["stage"], run["config"]["weight"], run["inputs"]) == ("interpolate", 0.5, expected)
    written = (out / "model.safetensors").stat().st_mtime_ns
    interpolate(world.sft, tuned, out)  # finished: nothing to do
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    run_ppo(world, tmp_path / "next", replace(CONFIG, iterations=1), policy=out)  # a run like any other


def test_runs_of_adapters_alone(world: World, tmp_path: Path) -> None:
    """Merged, then mixed; what the adapters leave alone stays as it is, to the last bit."""
    lora = replace(SFT, tokens=64 * 4 * 4, lora_rank=2, lora_targets=("q",), adapter_only=True)
    for name, seed in (("a", 0), ("b", 1)):
        sft(world.base, (world.demos,), tmp_path / name, (), replace(lora, seed=seed))
    interpolate(tmp_path / "a", tmp_path / "b", tmp_path / "out", InterpolateConfig(weight=0.7))
    first, second, found = (dict(load_policy(tmp_path / n, CPU)[0].named_parameters()) for n in ("a", "b", "out"))
    moved = {name for name in found if not torch.equal(first[name], second[name])}
    assert moved and all("attention.qkv" in name for name in moved)
    for name, parameter in found.items():
        if name in moved:
            torch.testing.assert_close(parameter, 0.3 * first[name] + 0.7 * second[name], atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(parameter, first[name])


def test_what_lies_on_no_line_is_one_line(
    world: World, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = load_policy(world.sft, CPU)
    deep = GPT(replace(model.config, layers=3)).initialise(torch.Generator().manual_seed(0))
    save_policy(tmp_path / "deep", deep, tokenizer)
    shutil.copytree(world.sft, tmp_path / "foreign")
    config = json.loads((tmp_path / "foreign" / "tokenizer_config.json").read_text())
    config["chat_template"] += "{# other #}"
    (tmp_path / "foreign" / "tokenizer_config.json").write_text(json.dumps(config))
    for other, more, said in (
        (tmp_path / "deep", [], "layers is 1 and 3; only models of the same shape can be interpolated"),
        (tmp_path / "foreign", [], "their tokenizers differ"),
        (world.reward, [], "holds a reward model, not a language model"),
        (tmp_path / "nosuch", [], "no such folder or file"),
        (tuned, ["--weight", "1.5"], "--weight 1.5: must be at most 1"),
        (tuned, ["--weight", "-0.5"], "--weight -0.5: must be at least 0"),
    ):
        assert said in refused(["interpolate", str(world.sft), str(other), "--out", str(tmp_path / "o"), *more], capsys)
        nothing_made(tmp_path / "o")
