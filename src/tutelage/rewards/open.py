"""Opens rewards by name: a run, `module:function`, `file.py:function`, a scorer's URL or a panel.json.

names -> the reward, an ensemble if there are several (`open_reward`)
names -> the inputs that a run records and hashes (`reward_inputs`)
names -> the first reward model (`first_run`)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from tutelage.data.messages import Messages
from tutelage.data.panel import Panel
from tutelage.data.prompts import check_context
from tutelage.errors import InputError
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.ensemble import Ensemble
from tutelage.rewards.function import SIGNATURE, FunctionReward, function_identity
from tutelage.rewards.http import HTTPReward
from tutelage.rewards.reward import ModelReward, Reward, TextReward
from tutelage.runs.device import Device
from tutelage.runs.folder import load_scorer, same_tokenizer
from tutelage.runs.identity import Input, NamedInput


def kind_of(name: str) -> Literal["run", "function", "url", "panel"]:
    """Which kind of reward the name stands for."""
    if name.startswith(("http://", "https://")):
        return "url"
    if name.endswith(".json"):
        return "panel"
    if name.endswith(".py") and not Path(name).is_dir():
        raise InputError(f"reward {name}: names a file; name the function in it, too: {name}:FUNCTION; {SIGNATURE}")
    return "function" if ":" in name and not Path(name).exists() else "run"


def open_reward(names: Sequence[str], config: RewardsConfig, load: Callable[[Path], ModelReward]) -> Reward:
    """The reward with this name, or an ensemble of several; `load` reads a reward model from its run.

    Raises InputError for --ensemble with one reward, and for a model in an ensemble whose scale is unknown.
    """
    if len(names) == 1 and config.ensemble != "mean":
        raise InputError(f"--ensemble {config.ensemble}: needs several rewards, one is given")
    members = [open_single(name, config, load) for name in names]
    if len(members) == 1:
        return members[0]
    for name, member in zip(names, members, strict=True):
        if any(not model.std for model in member.models):
            raise InputError(
                f"{name}: its config.json has no reward_std (the standard deviation of its scores of demonstrations), "
                "which an ensemble needs to scale its scores; train it again, or write the value there"
            )
    return Ensemble(members, config)


def open_single(name: str, config: RewardsConfig, load: Callable[[Path], ModelReward]) -> Reward:
    kind = kind_of(name)
    if kind == "run":
        return load(Path(name))
    if kind == "panel":
        return TextReward(gold_by(Path(name)))
    return TextReward(HTTPReward(name, config.reward_key()) if kind == "url" else FunctionReward(name))


def gold_by(panel: Path) -> Callable[[Sequence[Messages]], list[float]]:
    """The gold score: the simulated panel's utility, without the bias and noise of its rankings."""
    utility = Panel.load(panel).utility
    return lambda conversations: [utility(messages[:-1], messages[-1]["content"]) for messages in conversations]


def load_frozen(place: Path, device: Device) -> ModelReward:
    """A frozen reward model that shares no weights with another model."""
    model, tokenizer = load_scorer(place, device, frozen=True)
    return ModelReward(model.eval().requires_grad_(False), tokenizer)


def frozen_loader(policy: Path, device: Device, max_prompt: int, max_tokens: int) -> Callable[[Path], ModelReward]:
    """A loader of frozen reward models that will score this policy's responses.

    The loader raises InputError if a model's tokenizer is not the policy's, or if its context is shorter than
    max_prompt + max_tokens.
    """

    def load(place: Path) -> ModelReward:
        same_tokenizer(policy, place)
        reward = load_frozen(place, device)
        check_context(reward.model.trunk.config.context, max_prompt, max_tokens, place)
        return reward

    return load


def first_run(names: Sequence[str]) -> Path | None:
    """The first name that is a run, so a reward model; None if there is none."""
    return next((Path(name) for name in names if kind_of(name) == "run"), None)


def reward_inputs(names: Sequence[str]) -> Input | list[Input]:
    """These rewards as inputs of a run, for its fingerprint. Raises InputError for a function that does not exist."""
    inputs = [reward_input(name) for name in names]
    return inputs[0] if len(inputs) == 1 else inputs


def reward_input(name: str) -> Input:
    kind = kind_of(name)
    if kind == "url":
        return NamedInput(name, name)
    return function_identity(name) if kind == "function" else Path(name)
