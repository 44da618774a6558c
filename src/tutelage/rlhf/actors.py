"""The models of reinforcement learning from human feedback.

    policy run, rewards by name -> policy, reference, reward, value

PPO has all four; RLOO and GRPO have no value network. Without adapters each is a separate set of weights. With adapters
all share one frozen base, the SFT model, and each role has its own adapters and head: the reference has none, and the
value network starts from the reward model's. The layers below the lowest adapter then run once per rollout, and every
role and epoch reuses their output. Where no reward is a model (a Python function, an HTTP scorer), the value network
starts as the policy with a head of zeros, so that it predicts 0 until it has seen returns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tutelage.data.prompts import check_context
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import frozen_depth, without_adapters
from tutelage.rewards.open import first_run, frozen_loader, open_reward, open_single
from tutelage.rewards.reward import ModelReward, Reward
from tutelage.rlhf.config import RLConfig
from tutelage.runs.adapter import adapt, load_adapted_scorer
from tutelage.runs.device import Device
from tutelage.runs.folder import load_policy, load_scorer, same_tokenizer
from tutelage.runs.run import Run
from tutelage.sampling.sampler import inference_copy
from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Actors:
    """The models of a rollout."""

    policy: GPT
    reference: GPT | None  # the policy's starting point; None: the policy with its adapters off
    reward: Reward
    value: ScalarGPT | None  # None for RLOO and GRPO
    value_base: Path  # the model that the value network's adapters belong to
    tokenizer: Tokenizer

    @property
    def shared_layers(self) -> int:
        """How many of the lowest blocks are frozen and shared by all roles."""
        scalars = [*self.reward.models, *([self.value] if self.value else [])]
        roles = [self.policy, *(scalar.trunk for scalar in scalars)]
        common = [role for role in roles if role.embedding.weight is self.policy.embedding.weight]
        return min(map(frozen_depth, common))


def load_actors(policy: Path, rewards: Sequence[str], config: RLConfig, run: Run, critic: bool = True) -> Actors:
    """Load every role; without a `critic` there is no value network.

    Raises InputError when policy and reward model have different tokenizers, or a context too short for a response.
    """
    trained, tokenizer = load_policy(policy, run.device, frozen=config.adapted)
    check_context(trained.config.context, config.max_prompt, config.max_tokens)
    trained.eval()
    frozen = frozen_loader(policy, run.device, config.max_prompt, config.max_tokens)
    if not config.adapted:
        reward = open_reward(rewards, config, frozen)
        value, base = load_value(first_run(rewards), policy, run.device) if critic else (None, policy)
        return Actors(trained, inference_copy(trained), reward, value, base, tokenizer)
    adapt(trained, config, run.generator("adapter"))
    reward = open_reward(rewards, config, partial(load_beside, trained, tokenizer, policy, frozen))
    value, base = adapted_value(trained, rewards, policy, config, run) if critic else (None, policy)
    return Actors(trained, None, reward, value, base, tokenizer)


def load_value(start: Path | None, policy: Path, device: Device, frozen: bool = False) -> tuple[ScalarGPT, Path]:
    """A value network, and the run that it starts from: the reward model `start`, or without one the policy with a
    head of zeros.
    """
    if start:
        return load_scorer(start, device, frozen)[0].eval(), start
    return with_zero_head(load_policy(policy, device)[0]), policy


def load_beside(
    trained: GPT, tokenizer: Tokenizer, policy: Path, frozen: Callable[[Path], ModelReward], place: Path
) -> ModelReward:
    """A frozen reward model: adapters on the policy's base if it was trained as such, else its own weights."""
    same_tokenizer(policy, place)
    if shared := load_adapted_scorer(without_adapters(trained), policy, place):
        return ModelReward(shared.requires_grad_(False).eval(), tokenizer)
    return frozen(place)


def adapted_value(
    trained: GPT, rewards: Sequence[str], policy: Path, config: RLConfig, run: Run
) -> tuple[ScalarGPT, Path]:
    """A value network of adapters and a head, from the reward model if possible, and the run that they belong to."""
    start = first_run(rewards)
    if start and (shared := load_adapted_scorer(without_adapters(trained), policy, start)):
        return shared.eval(), policy
    value, base = (
        load_value(start, policy, run.device, frozen=True)
        if start
        else (with_zero_head(without_adapters(trained)), policy)
    )
    adapt(value.trunk, config, run.generator("value-adapter"))
    return value, base


def with_zero_head(trunk: GPT) -> ScalarGPT:
    """A value network that predicts 0 everywhere."""
    value = ScalarGPT(trunk).to(trunk.embedding.weight.device).eval()
    torch.nn.init.zeros_(value.score.weight)
    return value


def load_judge(judge: str | None, policy: Path, config: RLConfig, run: Run) -> Reward | None:
    """The held-out reward that only monitors; without one the run says what it cannot notice.

    Raises InputError as `load_actors` does.
    """
    if judge:
        return open_single(judge, config, frozen_loader(policy, run.device, config.max_prompt, config.max_tokens))
    run.progress.say(f"{run.out}: no --judge, so nothing notices a score that rises while the responses get worse")
    return None
