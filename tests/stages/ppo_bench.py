"""What the tests of PPO share: tiny configurations, and one rollout of the stage's own making."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from test_reward import Theirs
from world import World, named, user

from tutelage.rlhf.actors import load_actors
from tutelage.rlhf.rollouts import EncodedPrompt, roll_out, rollout_seeds
from tutelage.rlhf.setup import RLInputs
from tutelage.runs.run import Run
from tutelage.stages.ppo import PPOConfig, make_learner, ppo

CONFIG = PPOConfig(
    iterations=4, batch=8, minibatch=8, max_tokens=24, max_prompt=32, ptx_windows=2, ptx_calibration=2, kl_budget=1e9,
    lr=1e-3, value_lr=1e-3, dtype="fp32",
)  # fmt: skip
PLAIN = replace(CONFIG, ptx=False)


def run_ppo(world: World, out: Path, config: PPOConfig = CONFIG, **given: Any) -> Path:
    inputs = {"policy": world.sft, "reward": world.reward, "prompts": (world.prompts,)} | given
    if config.ptx:
        inputs.setdefault("corpus", (world.corpus,))
    ppo(RLInputs(out=out, **inputs | {"reward": named(inputs["reward"])}), config)
    return out


def scorer_with(world: World, folder: Path, value: float, mean: float = 0.0) -> Path:
    """A copy of the reward model whose head is one number everywhere."""
    shutil.copytree(world.reward, folder)
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"].fill_(value)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"reward_mean": mean}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Bench:
    """One rollout of the stage's own making, with everything around it."""

    def __init__(self, world: World, out: Path, reward_run: Path, config: PPOConfig):
        self.config = config
        self.run = Run(out, stage="ppo", config=config, inputs={})
        self.actors = load_actors(world.sft, (str(reward_run),), config, self.run)
        self.tokenizer, self.scorer = self.actors.tokenizer, self.actors.reward.models[0]
        self.learner = make_learner(self.actors, config)
        asked = [json.loads(line)["prompt"][0]["content"] for line in world.prompts.read_text().splitlines()]
        self.theirs = Theirs(reward_run)
        self.prompts = [self.theirs.ids(question, "")[:-1] for question in asked]
        encoded = [EncodedPrompt(ids, [user(q)]) for ids, q in zip(self.prompts, asked, strict=True)]
        prompts = [encoded[i % len(encoded)] for i in range(config.batch)]
        seeds = rollout_seeds(config.seed, 0, config.batch)
        self.rollout, self.gap = roll_out(self.actors, prompts, seeds, config, [torch.arange(config.batch)])
