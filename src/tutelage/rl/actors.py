"""The four models of reinforcement learning from human feedback, and one rollout of theirs.

    policy run, reward run -> policy, reference, reward, value;  prompts -> responses -> Rollout

Trained whole they are four sets of weights. With adapters they are one frozen base, the SFT model, in which each role
has adapters and heads of its own: the reference has none, the value network starts from the reward model's. What lies
below the lowest adapter is then run once per rollout, and all roles and every pass over the rollout go on from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import frozen_depth, without_adapters
from tutelage.runs.adapter import AdapterConfig, adapt, lighten, load_adapted_scorer
from tutelage.runs.folder import load_policy, load_scorer, same_tokenizer
from tutelage.runs.run import Run, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import Rollout, pad_responses, score_rollout, with_stream
from tutelage.sampling.sampler import Answer, generate, inference_copy
from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Actors:
    """Who plays in a rollout."""

    policy: GPT
    reference: GPT | None  # what the policy started as; None: the policy with its adapters off
    reward: ScalarGPT
    value: ScalarGPT
    value_base: Path  # the model that the value network's adapters belong to
    words: Tokenizer

    @property
    def shared_layers(self) -> int:
        """How many of the lowest blocks all of them have in common, with nothing to train in them."""
        roles = [self.policy, self.value.trunk, self.reward.trunk]
        common = [role for role in roles if role.embedding.weight is self.policy.embedding.weight]
        return min(map(frozen_depth, common))


def load_actors(policy: Path, reward: Path, config: AdapterConfig, run: Run) -> Actors:
    """The roles' starting points. Raises InputError when policy and reward model have different tokenizers."""
    same_tokenizer(policy, reward)
    trained, words = load_policy(policy, run.device)
    trained.eval()
    if not config.adapted:
        scorer, value = (load_scorer(reward, run.device)[0].eval() for _ in range(2))
        lighten(scorer.requires_grad_(False).trunk)
        return Actors(trained, inference_copy(trained), scorer, value, reward, words)
    adapt(trained, config, run.generator("adapter"))
    shared = [load_adapted_scorer(without_adapters(trained), policy, reward) for _ in range(2)]
    if shared[0] and shared[1]:
        return Actors(trained, None, shared[0].requires_grad_(False).eval(), shared[1].eval(), policy, words)
    scorer, value = (load_scorer(reward, run.device)[0].eval() for _ in range(2))
    lighten(scorer.requires_grad_(False).trunk)
    adapt(value.trunk, config, run.generator("value-adapter"))
    return Actors(trained, None, scorer, value, reward, words)


def roll_out(
    actors: Actors, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: SamplingConfig, missing_end: float,
    parts: Sequence[Tensor],
) -> tuple[Rollout, float]:  # fmt: skip
    """Sample a response to each prompt and run the four models over them, in the parts that are learnt from together.

    Also returns the mean gap between the sampler's log-probabilities and the training forward's: a wrong sampler shows
    here, though not in the ratio.
    """
    words = actors.words
    sampler = inference_copy(actors.policy)
    answers = [a for (a,) in generate(sampler, prompts, seeds, words.end_of_turn_id, sampling)]
    responses = pad_responses(prompts, answers, words.pad_id, actors.policy.embedding.weight.device)
    responses = with_stream(responses, actors.policy, actors.shared_layers)
    rollout = score_rollout(
        actors.policy, actors.reference, actors.value, actors.reward, responses,
        parts=parts, missing_end=missing_end, temperature=sampling.temperature,
    )  # fmt: skip
    return rollout, sampler_gap(answers, rollout)


def rollout_seeds(seed: int, iteration: int, count: int) -> list[int]:
    """One per response, the same however often the run was stopped."""
    return [seed_for(seed, f"ppo/{iteration}/{i}") for i in range(count)]


def sampler_gap(answers: Sequence[Answer], rollout: Rollout) -> float:
    """Mean |log p of the sampler - log p of the training forward| over the response tokens."""
    mask = rollout.responses.mask
    sampled = torch.tensor([p for answer in answers for p in answer.logprobs], device=mask.device)
    return float((sampled - rollout.logprobs[mask]).abs().mean())
