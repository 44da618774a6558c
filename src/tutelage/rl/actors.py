"""The models of reinforcement learning from human feedback, and one rollout of theirs.

    policy run, reward run -> policy, reference, reward, value;  prompts -> responses -> Rollout

PPO has all four; RLOO and GRPO do without the value network. Trained whole they are as many sets of weights. With
adapters they are one frozen base, the SFT model, in which each role has adapters and heads of its own: the reference
has none, the value network starts from the reward model's. What lies below the lowest adapter is then run once per
rollout, and all roles and every pass over the rollout go on from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tutelage.data.prompts import check_room, choose_fitting
from tutelage.data.records import read_prompts
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import frozen_depth, without_adapters
from tutelage.rl.config import RLConfig
from tutelage.runs.adapter import AdapterConfig, adapt, lighten, load_adapted_scorer
from tutelage.runs.device import Device, hand_back_memory
from tutelage.runs.folder import load_policy, load_scorer, same_tokenizer
from tutelage.runs.run import Run, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import Rollout, pad_responses, response_scores, score_rollout, with_stream
from tutelage.sampling.sampler import Answer, generate, inference_copy
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Actors:
    """Who plays in a rollout."""

    policy: GPT
    reference: GPT | None  # what the policy started as; None: the policy with its adapters off
    reward: ScalarGPT
    value: ScalarGPT | None  # None: the other responses to a prompt are the baseline
    value_base: Path  # the model that a value network's adapters belong to
    words: Tokenizer

    @property
    def shared_layers(self) -> int:
        """How many of the lowest blocks all of them have in common, with nothing to train in them."""
        roles = [self.policy, self.reward.trunk, *([self.value.trunk] if self.value else [])]
        common = [role for role in roles if role.embedding.weight is self.policy.embedding.weight]
        return min(map(frozen_depth, common))


def load_actors(policy: Path, reward: Path, config: AdapterConfig, run: Run, critic: bool = True) -> Actors:
    """The roles' starting points, without a value network if there is to be no `critic`.

    Raises InputError when policy and reward model have different tokenizers.
    """
    same_tokenizer(policy, reward)
    trained, words = load_policy(policy, run.device)
    trained.eval()
    if not config.adapted:
        value = load_scorer(reward, run.device)[0].eval() if critic else None
        return Actors(trained, inference_copy(trained), load_frozen(reward, run.device), value, reward, words)
    adapt(trained, config, run.generator("adapter"))
    if scorer := load_adapted_scorer(without_adapters(trained), policy, reward):
        value = load_adapted_scorer(without_adapters(trained), policy, reward) if critic else None
        return Actors(trained, None, scorer.requires_grad_(False).eval(), value and value.eval(), policy, words)
    value = load_scorer(reward, run.device)[0].eval() if critic else None
    if value:
        adapt(value.trunk, config, run.generator("value-adapter"))
    return Actors(trained, None, load_frozen(reward, run.device), value, reward, words)


def load_frozen(reward: Path, device: Device) -> ScalarGPT:
    """A frozen reward model, with weights of its own."""
    scorer = load_scorer(reward, device)[0].eval()
    lighten(scorer.requires_grad_(False).trunk)
    return scorer


def encode_prompts(actors: Actors, prompts: Sequence[Path], count: int, config: RLConfig, salt: str) -> list[list[int]]:
    """Up to `count` prompts as the policy is asked them. Raises InputError where they leave no room for an answer."""
    check_room(actors.policy.config.context, config.max_prompt, config.max_tokens)
    chosen = choose_fitting(read_prompts(prompts), actors.words, count, config.max_prompt, salt)
    return [encode_chat(actors.words, p.prompt, add_generation_prompt=True).ids for p in chosen]


def next_rollout(
    actors: Actors, asked: Sequence[list[int]], iteration: int, config: RLConfig, parts: Sequence[Tensor],
    samples: int = 1,
) -> tuple[Rollout, float]:  # fmt: skip
    """The rollout of an iteration: the next prompts, round and round, `samples` responses to each. See `roll_out`."""
    count = config.batch // samples
    prompts = [asked[(iteration * count + i) % len(asked)] for i in range(count)]
    seeds = rollout_seeds(config.seed, iteration, config.batch)
    sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=config.temperature)
    return roll_out(actors, prompts, seeds, sampling, config.missing_end, parts, samples)


def roll_out(
    actors: Actors, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: SamplingConfig, missing_end: float,
    parts: Sequence[Tensor], samples: int = 1,
) -> tuple[Rollout, float]:  # fmt: skip
    """Sample `samples` responses to each prompt, prompt by prompt, and run the models over them.

    What learning compares with is computed in `parts`, the rows that are learned from together.

    Also returns the mean gap between the sampler's log-probabilities and the training forward's: a wrong sampler shows
    here, though not in the ratio.
    """
    hand_back_memory()  # what learning from the last rollout left in pieces
    words = actors.words
    sampler = inference_copy(actors.policy)
    groups = generate(sampler, prompts, seeds, words.end_of_turn_id, sampling, samples)
    answers = [answer for group in groups for answer in group]
    asked = [prompt for prompt in prompts for _ in range(samples)]
    responses = pad_responses(asked, answers, words.pad_id, actors.policy.embedding.weight.device)
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


def load_judge(judge: Path | None, policy: Path, device: Device) -> ScalarGPT | None:
    """A second reward model, which is not learnt from. Raises InputError when its tokenizer is not the policy's."""
    if judge is None:
        return None
    same_tokenizer(policy, judge)
    return load_frozen(judge, device)


@torch.no_grad()
def judge_score(judge: ScalarGPT, rollout: Rollout, missing_end: float) -> float:
    """Mean score of the rollout's responses by the judge, a missing end replaced as it is for the reward model."""
    scores = response_scores(judge, rollout.responses)
    return float(torch.where(rollout.responses.ended, scores, missing_end).mean())
