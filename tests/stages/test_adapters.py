"""SFT, reward and PPO with adapters: what PEFT makes of their files, what stays as it was."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers
from ppo_bench import CONFIG, run_ppo
from safetensors.torch import load_file
from world import REWARD, SFT, World, files_in, interrupted, metrics, results, same_files

from tutelage.errors import InputError
from tutelage.runs.adapter import AdapterConfig, adapt, merged
from tutelage.runs.device import Device
from tutelage.runs.folder import load_policy, load_scorer
from tutelage.runs.identity import hash_input
from tutelage.stages.reward import reward
from tutelage.stages.sft import SFTConfig, sft

LORA = replace(SFT, lora_rank=4, lora_alpha=16.0, lora_dropout=0.1)
IDS = torch.tensor([[15, 17, 260, 33, 8, 120, 77, 201, 9, 45]])
CPU = Device(torch.device("cpu"), torch.float32, 1, "the tests")


def run_sft(world: World, out: Path, config: SFTConfig = LORA) -> Path:
    sft(world.base, (world.demos,), out, (world.demos_valid,), config)
    return out


@pytest.fixture(scope="module")
def tuned(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_sft(world, tmp_path_factory.mktemp("lora") / "sft")


def their_logits(folder: Path) -> torch.Tensor:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


def test_it_learns_and_leaves_the_base_alone(world: World, tmp_path: Path) -> None:
    before = hashlib.sha256((world.base / "model.safetensors").read_bytes()).hexdigest()
    out = run_sft(world, tmp_path / "out")
    assert hashlib.sha256((world.base / "model.safetensors").read_bytes()).hexdigest() == before
    losses = [line["heldout_loss"] for line in metrics(out) if "heldout_loss" in line]
    assert losses[-1] < losses[0] - 0.1
    base, merged_weights = load_file(world.base / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], merged_weights[name])}
    assert changed == {name for name in base if "_proj" in name}
    assert results(out)["markers_renewed"] == 0


def test_peft_puts_the_adapter_on_the_base_and_gets_the_merged_model(world: World, tuned: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(world.base)
    theirs = peft.PeftModel.from_pretrained(base, tuned / "adapter").eval()
    torch.testing.assert_close(theirs(IDS).logits, their_logits(tuned), atol=1e-4, rtol=1e-4)


def test_the_adapter_alone_is_the_same_model(world: World, tuned: Path, tmp_path: Path) -> None:
    alone = run_sft(world, tmp_path / "alone", replace(LORA, adapter_only=True))
    assert not (alone / "model.safetensors").exists()
    same_files(alone / "adapter", tuned / "adapter", ["adapter_model.safetensors"])
    model, tokenizer = load_policy(alone, CPU)
    torch.testing.assert_close(model(IDS), their_logits(tuned), atol=1e-4, rtol=1e-4)
    assert tokenizer.vocab_size == 300
    run_ppo(world, tmp_path / "next", replace(CONFIG, iterations=1), policy=alone)  # a run like any other
    before = hash_input(alone)
    (alone / "adapter" / "adapter_config.json").write_text("{}")
    assert hash_input(alone) != before


def test_an_adapter_of_others_is_another_one_on_another_base(world: World, tuned: Path, tmp_path: Path) -> None:
    """PEFT writes no hash of the base, so the base is hashed where its path leads."""
    base, folder = tmp_path / "base", tmp_path / "theirs"
    shutil.copytree(world.base, base)
    shutil.copytree(tuned / "adapter", folder)
    (folder / "base.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    before = hash_input(folder)
    assert hash_input(folder) == before
    shutil.copy(world.sft / "model.safetensors", base / "model.safetensors")
    assert hash_input(folder) != before


@pytest.mark.parametrize("inside", ["", "adapter"])
def test_adapters_that_name_each_other_are_refused_in_one_line(tuned: Path, tmp_path: Path, inside: str) -> None:
    """As PEFT folders, or as runs with an adapter in them; the ring may lie further down."""
    for name, base in (("first", "second"), ("second", "third"), ("third", "second")):
        shutil.copytree(tuned / "adapter", tmp_path / name / inside)
        (tmp_path / name / inside / "base.json").unlink()
        config = json.loads((tmp_path / name / inside / "adapter_config.json").read_text())
        named = json.dumps(config | {"base_model_name_or_path": str(tmp_path / base)})
        (tmp_path / name / inside / "adapter_config.json").write_text(named)
    for look in (hash_input, lambda folder: load_policy(folder, CPU)):
        with pytest.raises(InputError, match="its base leads back to .*second") as refused:
            look(tmp_path / "first")
        assert "\n" not in str(refused.value)


def test_a_base_that_has_moved_or_changed_is_refused_in_one_line(world: World, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(world.base, base)
    sft(base, (world.demos,), tmp_path / "run", (), replace(LORA, adapter_only=True, tokens=64 * 4))
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no such folder or file"):
        load_policy(tmp_path / "run", CPU)
    shutil.copytree(world.sft, base)
    with pytest.raises(InputError, match="has changed since"):
        load_policy(tmp_path / "run", CPU)


def test_an_interruption_changes_nothing(
    world: World, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws the same however often the run was stopped; a checkpoint holds no frozen weight."""
    out = tmp_path / "out"
    interrupted(lambda: run_sft(world, out), monkeypatch, 7)
    saved = [name for name in files_in(out) if name.endswith("state.safetensors")]
    assert all("embedding" not in key for name in saved for key in load_file(out / name))
    run_sft(world, out)
    same_files(out, tuned, ["model.safetensors", "adapter/adapter_model.safetensors"])


def test_a_reward_model_of_adapters_is_a_classifier_in_peft(world: World, tuned: Path, tmp_path: Path) -> None:
    config = replace(REWARD, lora_rank=4, lora_targets=("q", "v"))
    reward(tuned, (world.comparisons,), tmp_path / "reward", (world.demos,), world.panel, config)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tuned, num_labels=1)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "reward" / "adapter").eval()
    ours, _ = load_scorer(tmp_path / "reward", CPU)
    expected = theirs(IDS).logits[0, 0] - ours.mean
    torch.testing.assert_close(ours(IDS)[0, -1], expected, atol=1e-4, rtol=1e-4)
    base_weights, own = load_file(tuned / "model.safetensors"), load_file(tmp_path / "reward/model.safetensors")
    changed = {name for name in base_weights if not torch.equal(base_weights[name], own[name])}
    assert changed == {name for name in base_weights if name.endswith(("q_proj.weight", "v_proj.weight"))}


def test_ppo_on_adapters_starts_at_its_reference_exactly(world: World, tmp_path: Path) -> None:
    config = replace(CONFIG, lora_rank=4)
    out = run_ppo(world, tmp_path / "ppo", config)
    lines = metrics(out)
    assert lines[0]["kl"] == 0.0 and lines[-1]["kl"] != 0.0
    assert all(line["ratio_error"] < 1e-4 and line["sampler_gap"] < 1e-3 for line in lines)
    base = transformers.AutoModelForCausalLM.from_pretrained(world.sft)
    theirs = peft.PeftModel.from_pretrained(base, out / "adapter").eval()
    torch.testing.assert_close(theirs(IDS).logits, their_logits(out), atol=1e-4, rtol=1e-4)
    assert (out / "value" / "adapter" / "adapter_model.safetensors").is_file()


def test_ppo_on_adapters_resumes_where_it_was(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, lora_rank=4)
    whole = run_ppo(world, tmp_path / "whole", config)
    interrupted(lambda: run_ppo(world, tmp_path / "cut", config), monkeypatch, 2)
    cut = run_ppo(world, tmp_path / "cut", config)
    same_files(whole, cut, ["model.safetensors", "adapter/adapter_model.safetensors", "value/model.safetensors"])


def test_merging_is_held_to_the_adapted_models_logits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate sees a merge that is wrong by a hundredth."""
    from tutelage.model import lora

    adapted = adapt(load_policy(world.sft, CPU)[0], AdapterConfig(lora_rank=2), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _, _, adapter in lora.adapted_linears(adapted):
            for up in adapter.up:
                up.fill_(0.3)
    merged(adapted, load_policy(world.sft, CPU)[0])
    update = lora.Adapter.update
    monkeypatch.setattr(lora.Adapter, "update", lambda self: 1.01 * update(self))
    with pytest.raises(InputError, match="merged model's logits differ"):
        merged(adapted, load_policy(world.sft, CPU)[0])


def test_a_folder_that_names_itself_or_nothing_as_its_base_is_refused(tuned: Path, tmp_path: Path) -> None:
    for name in ("", ".", None, "../adapter"):
        folder = tmp_path / "adapter"
        shutil.copytree(tuned / "adapter", folder, dirs_exist_ok=True)
        (folder / "base.json").unlink()
        config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": name}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="names (no|itself as its) base"):
            load_policy(folder, CPU)


def test_settings_that_would_do_nothing_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --lora-rank"):
        replace(SFT, adapter_only=True)
    with pytest.raises(InputError, match="leave it out"):
        run_ppo(world, tmp_path / "ppo", replace(CONFIG, lora_rank=2, lora_dropout=0.1))
    with pytest.raises(InputError, match="leave --adapter-only out"):
        reward(
            world.sft, (world.comparisons,), tmp_path / "reward", (world.demos,), world.panel,
            replace(REWARD, lora_rank=2, adapter_only=True),
        )  # fmt: skip


def test_maps_that_do_not_exist_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--lora-targets q_proj: is not a linear map"):
        run_sft(world, tmp_path / "out", replace(LORA, lora_targets=("q_proj",)))
    assert math.isclose(json.loads((world.sft / "config.json").read_text())["rms_norm_eps"], 1e-6)
