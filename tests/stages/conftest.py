"""One tiny world for the tests of all stages, and one rollout in it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ppo_bench import CONFIG, Bench
from world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Read only: a test that changes a run copies it first."""
    torch.set_num_threads(1)
    return World(tmp_path_factory.mktemp("world")).make()


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Bench:
    return Bench(world, tmp_path / "bench", world.reward, replace(CONFIG, batch=16, minibatch=16, max_tokens=12))
