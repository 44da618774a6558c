"""Policies kept on the way: what a run would have saved had it ended there, and no number of the run is another."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from ppo_bench import CONFIG, run_ppo
from safetensors.torch import load_file
from test_rloo_grpo import GRPO, RLOO, run_groups
from world import World, files_in, interrupted, metrics, same_files

from tutelage.rlhf.loop import TrainingLoop
from tutelage.runs.device import choose_device
from tutelage.runs.folder import load_policy
from tutelage.runs.identity import hash_input
from tutelage.stages.dpo import DPOConfig, dpo

CPU = choose_device("cpu", "fp32")
DPO = DPOConfig(batch=4, lr=1e-3, heldout=0.2, dtype="fp32")
IDS = torch.tensor([[15, 17, 260, 33, 8, 120, 77, 201, 9, 45]])
ADAPTED: dict[str, Any] = dict(lora_rank=4, lora_layers=1)
RL = {
    "ppo": (run_ppo, CONFIG),
    "ppo-adapters": (run_ppo, replace(CONFIG, **ADAPTED)),
    "rloo": (run_groups, RLOO),
    "grpo-adapters": (run_groups, replace(GRPO, **ADAPTED)),
}


def logits(folder: Path) -> torch.Tensor:
    return load_policy(folder, CPU)[0].eval()(IDS)


def run_dpo(world: World, out: Path, config: DPOConfig) -> Path:
    dpo(world.sft, (world.comparisons,), out, config)
    return out


@pytest.mark.parametrize("kind", RL)
def test_a_snapshot_is_the_run_that_ends_there(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The same run, stopped at its KL budget one iteration later, saves that policy."""
    make, config = RL[kind]
    kept = make(world, tmp_path / "kept", replace(config, snapshot_every=2))
    assert [folder.name for folder in sorted((kept / "snapshots").iterdir())] == ["00002"]
    original: Callable[..., bool] = TrainingLoop.should_learn

    def should_learn(self: TrainingLoop, measured: dict[str, float], iteration: int) -> bool:
        return original(self, measured | ({"kl": 1e12} if iteration > 2 else {}), iteration)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "should_learn", should_learn)
        ended = make(world, tmp_path / "ended", config)
    torch.testing.assert_close(logits(kept / "snapshots/00002"), logits(ended), atol=1e-5, rtol=1e-5)
    assert (logits(kept / "snapshots/00002") - logits(kept)).abs().max() > 1e-3


@pytest.mark.parametrize("adapted", [False, True])
def test_they_change_no_number_and_survive_an_interruption(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapted: bool
) -> None:
    config = replace(CONFIG, **(ADAPTED if adapted else {}))
    plain, kept = run_ppo(world, tmp_path / "plain", config), tmp_path / "kept"
    config = replace(config, snapshot_every=1)
    interrupted(lambda: run_ppo(world, kept, config), monkeypatch, 2)
    assert files_in(kept / "snapshots")
    run_ppo(world, kept, config)
    same_files(kept, plain, ["model.safetensors", "value/model.safetensors"])
    assert metrics(kept) == metrics(plain)
    assert [folder.name for folder in sorted((kept / "snapshots").iterdir())] == ["00001", "00002", "00003"]


def test_a_step_of_dpo_is_kept_as_it_is_checkpointed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "dpo"
    interrupted(lambda: run_dpo(world, out, replace(DPO, snapshot_every=2)), monkeypatch, 2)
    saved = load_file(out / "checkpoints/00000002/state.safetensors")
    model, _ = load_policy(out / "snapshots/00002", CPU)
    for name, parameter in model.named_parameters():
        (found,) = (tensor for key, tensor in saved.items() if key.endswith(f"/training/model/{name}"))
        assert torch.equal(found, parameter), name


def test_an_adapter_is_kept_without_its_base_and_counts_as_a_run(world: World, tmp_path: Path) -> None:
    out = run_dpo(world, tmp_path / "dpo", replace(DPO, lora_rank=4, snapshot_every=1))
    folder = out / "snapshots/00001"
    assert not (folder / "model.safetensors").exists() and hash_input(folder) != hash_input(out)
    base = transformers.AutoModelForCausalLM.from_pretrained(world.sft)
    theirs = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    torch.testing.assert_close(theirs(IDS).logits, logits(folder), atol=1e-4, rtol=1e-4)
    dpo(folder, (world.comparisons,), tmp_path / "next", DPO)
