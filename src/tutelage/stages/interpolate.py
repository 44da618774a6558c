"""Linear interpolation between the weights of two runs, SFT and RL (Lin et al. 2024; Wortsman et al. 2022).

    SFT run, RL run -> (1 - weight) SFT + weight RL, tensor by tensor in fp32 -> a run like any other

RLHF loses some of what pretraining taught. Interpolating back towards SFT recovers much of it before it loses the
reward. At weight 0 and 1 the result equals SFT and RL exactly, and weights that are the same in both do not change.
Adapters are merged first, so the interpolation is between the products B A, not between the factors.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from tutelage.errors import InputError
from tutelage.model.gpt import GPT
from tutelage.options import Share
from tutelage.runs.adapter import EXACT
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, command
from tutelage.runs.folder import load_policy, same_tokenizer, save_policy
from tutelage.runs.run import Run, RunConfig


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(RunConfig):
    """Where between the two runs the result lies."""

    weight: Share = 0.5
    """Weight of the second run: 0 gives the first run, 1 the second."""


def interpolate(
    sft: tyro.conf.Positional[Path],
    rl: tyro.conf.Positional[Path],
    out: Path,
    config: InterpolateConfig = InterpolateConfig(),
) -> None:
    """Interpolate between the weights of an SFT model and of the model that RL made of it.

    sft: First run, at weight 0: the SFT model.
    rl: Second run, at weight 1: the RL model.
    out: Run directory to write.

    Example: tutelage interpolate runs/sft runs/ppo --weight 0.5 --out runs/between
    """
    sft, rl = find_base(sft), find_base(rl)
    with Run(out, stage="interpolate", config=config, inputs={"sft": sft, "rl": rl}) as run:
        if run.finished:
            return
        same_tokenizer(sft, rl)
        (first, tokenizer), (second, _) = load_policy(sft, EXACT), load_policy(rl, EXACT)
        if difference := shape_difference(first, second):
            raise InputError(f"{sft} and {rl}: {difference}; only models of the same shape can be interpolated")
        save_policy(out, between(first, second, config.weight), tokenizer)
        run.finish({"weight": config.weight}, ending(run, sft, rl, config.weight))


def ending(run: Run, sft: Path, rl: Path, weight: float) -> Ending:
    ends = {0.0: [f"at weight 0 this model equals {sft}"], 1.0: [f"at weight 1 this model equals {rl}"]}
    return Ending(
        f"interpolated {weight:.4g} of the way from {sft} to {rl}",
        warnings=ends.get(weight, []),
        next=[command("chat", run.out), command("evaluate", run.out, rl, "--sft", sft, "...")],
    )


def shape_difference(first: GPT, second: GPT) -> str | None:
    """The first setting in which the two shapes differ, in words; None if they are the same."""
    one, other = vars(first.config), vars(second.config)
    return next((f"{name} is {one[name]} and {other[name]}" for name in one if one[name] != other[name]), None)


@torch.no_grad()
def between(first: GPT, second: GPT, weight: float) -> GPT:
    """The first model, changed in place to (1 - weight) first + weight second."""
    others = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        parameter.copy_(parameter.lerp(others[name], weight))
    return first
