"""Between SFT and RL: a model on the line from one's weights to the other's (Lin et al. 2024; Wortsman et al. 2022).

    SFT run, RL run -> (1 - weight) SFT + weight RL, matrix by matrix in fp32 -> a run like any other

RLHF costs some of what pretraining taught, and on the way back much of that returns sooner than the reward is lost.
At 0 and 1 the result is SFT and RL themselves, and weights that both have alike stay as they are. Runs of adapters are
merged first: the line is between the products B A, not between the factors.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from tutelage.errors import InputError
from tutelage.model.gpt import GPT
from tutelage.runs.adapter import EXACT
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy, same_tokenizer, save_policy
from tutelage.runs.run import Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(RunConfig):
    """Where on the line."""

    weight: float = 0.5
    """Of the second run: 0 is the first, 1 the second."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight > 1:
            raise InputError(f"--weight {self.weight}: lies beyond the second run; give 0 to 1")


def interpolate(
    sft: tyro.conf.Positional[Path],
    rl: tyro.conf.Positional[Path],
    out: Path,
    config: InterpolateConfig = InterpolateConfig(),
) -> None:
    """Mix the weights of an SFT model and of what reinforcement learning made of it.

    Example: tutelage interpolate runs/sft runs/ppo --weight 0.5 --out runs/between
    """
    sft, rl = find_base(sft), find_base(rl)
    with Run(out, stage="interpolate", config=config, inputs={"sft": sft, "rl": rl}) as run:
        if run.finished:
            return
        same_tokenizer(sft, rl)
        (first, tokenizer), (second, _) = load_policy(sft, EXACT), load_policy(rl, EXACT)
        if difference := shape_difference(first, second):
            raise InputError(f"{sft} and {rl}: {difference}; only models of one shape lie on a line")
        save_policy(out, between(first, second, config.weight), tokenizer)
        run.finish({"weight": config.weight})


def shape_difference(first: GPT, second: GPT) -> str | None:
    """In words: the first setting of the two shapes that differs."""
    one, other = vars(first.config), vars(second.config)
    return next((f"{name} is {one[name]} and {other[name]}" for name in one if one[name] != other[name]), None)


@torch.no_grad()
def between(first: GPT, second: GPT, weight: float) -> GPT:
    """The first model, moved so far towards the second."""
    theirs = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        parameter.copy_(parameter.lerp(theirs[name], weight))
    return first
