"""One tiny world for the tests of all stages, one rollout in it, and a deeper model with a reward model on it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ppo_bench import CONFIG, Bench
from world import REWARD, World

from tutelage.model.gpt import GPT
from tutelage.runs.device import Device
from tutelage.runs.folder import load_policy, save_policy
from tutelage.stages.reward import reward


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Read only: a test that changes a run copies it first."""
    torch.set_num_threads(1)
    return World(tmp_path_factory.mktemp("world")).make()


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Bench:
    return Bench(world, tmp_path / "bench", world.reward, replace(CONFIG, batch=16, minibatch=16, max_tokens=12))


@pytest.fixture(scope="session")
def policy(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three layers, the tests' own has one."""
    model, tokenizer = load_policy(world.sft, Device(torch.device("cpu"), torch.float32, 1, "the tests"))
    deep = GPT(replace(model.config, layers=3)).initialise(torch.Generator().manual_seed(0))
    save_policy(out := tmp_path_factory.mktemp("deep"), deep, tokenizer)
    return out


@pytest.fixture(scope="session")
def judge(world: World, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that is an adapter in that model's top two layers."""
    out = tmp_path_factory.mktemp("shared") / "reward"
    config = replace(REWARD, lora_rank=4, lora_layers=2)
    reward(policy, (world.comparisons,), out, (world.demos,), world.panel, config)
    return out
