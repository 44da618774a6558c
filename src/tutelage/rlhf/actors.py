"""The models of reinforcement learning from human feedback, and one rollout of theirs.

    policy run, rewards by name -> policy, reference, reward, value;  prompts -> responses -> Rollout

PPO has all four; RLOO and GRPO do without the value network. Trained whole they are as many sets of weights. With
adapters they are one frozen base, the SFT model, in which each role has adapters and heads of its own: the reference
has none, the value network starts from the reward model's. What lies below the lowest adapter is then run once per
rollout, and all roles and every pass over the rollout go on from there. Where no reward is a model (a Python function,
an HTTP scorer), the value network starts as the policy with a head of zeros: it expects nothing until it has seen
returns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.prompts import check_room, choose_fitting
from tutelage.data.rankings import encode_prompt
from tutelage.data.records import Messages, read_prompts
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import frozen_depth, without_adapters
from tutelage.model.prepack import unpack
from tutelage.rewards.open import first_run, frozen_beside, open_one, open_reward
from tutelage.rewards.reward import ModelReward, Reward, with_response
from tutelage.rlhf.config import RLConfig
from tutelage.runs.adapter import adapt, load_adapted_scorer
from tutelage.runs.device import Device, release_memory
from tutelage.runs.folder import load_policy, load_scorer, same_tokenizer
from tutelage.runs.run import Run, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import Rollout, pad_responses, score_rollout
from tutelage.sampling.sampler import Response, generate, inference_copy, rows_that_fit
from tutelage.sampling.trunk_cache import TrunkCache
from tutelage.text.tokenizer import Tokenizer

STREAM_AT_MOST = 2**28  # bytes of the residual stream that are kept for a rollout


@dataclass(frozen=True)
class Actors:
    """Who plays in a rollout."""

    policy: GPT
    reference: GPT | None  # what the policy started as; None: the policy with its adapters off
    reward: Reward
    value: ScalarGPT | None  # None: the other responses to a prompt are the baseline
    value_base: Path  # the model that a value network's adapters belong to
    tokenizer: Tokenizer

    @property
    def shared_layers(self) -> int:
        """How many of the lowest blocks all of them have in common, with nothing to train in them."""
        scalars = [*self.reward.models, *([self.value] if self.value else [])]
        roles = [self.policy, *(scalar.trunk for scalar in scalars)]
        common = [role for role in roles if role.embedding.weight is self.policy.embedding.weight]
        return min(map(frozen_depth, common))


class EncodedPrompt(NamedTuple):
    """What the policy is asked, and how it is asked."""

    ids: list[int]
    messages: Messages


def load_actors(policy: Path, rewards: Sequence[str], config: RLConfig, run: Run, critic: bool = True) -> Actors:
    """The roles' starting points, without a value network if there is to be no `critic`.

    Raises InputError when policy and reward model have different tokenizers, or one of them no room for an answer.
    """
    trained, tokenizer = load_policy(policy, run.device, frozen=config.adapted)
    check_room(trained.config.context, config.max_prompt, config.max_tokens)
    trained.eval()
    frozen = frozen_beside(policy, run.device, config.max_prompt, config.max_tokens)
    if not config.adapted:
        reward = open_reward(rewards, config, frozen)
        value, base = load_value(first_run(rewards), policy, run.device) if critic else (None, policy)
        return Actors(trained, inference_copy(trained), reward, value, base, tokenizer)
    adapt(trained, config, run.generator("adapter"))
    reward = open_reward(rewards, config, partial(load_beside, trained, tokenizer, policy, frozen))
    value, base = adapted_value(trained, rewards, policy, config, run) if critic else (None, policy)
    return Actors(trained, None, reward, value, base, tokenizer)


def load_value(start: Path | None, policy: Path, device: Device, frozen: bool = False) -> tuple[ScalarGPT, Path]:
    """A value network that starts as this reward model, which has been found fit to judge the policy, else as the
    policy and a head of zeros; and as which run.
    """
    if start:
        return load_scorer(start, device, frozen)[0].eval(), start
    return with_zero_head(load_policy(policy, device)[0]), policy


def load_beside(
    trained: GPT, tokenizer: Tokenizer, policy: Path, frozen: Callable[[Path], ModelReward], place: Path
) -> ModelReward:
    """A frozen reward model: adapters on the policy's own base where it was trained as such, else all its weights."""
    same_tokenizer(policy, place)
    if shared := load_adapted_scorer(without_adapters(trained), policy, place):
        return ModelReward(shared.requires_grad_(False).eval(), tokenizer)
    return frozen(place)


def adapted_value(
    trained: GPT, rewards: Sequence[str], policy: Path, config: RLConfig, run: Run
) -> tuple[ScalarGPT, Path]:
    """A value network of adapters and a head: the reward model's where it can be, and what they belong to."""
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
    """A value network that says 0 everywhere."""
    value = ScalarGPT(trunk).to(trunk.embedding.weight.device).eval()
    torch.nn.init.zeros_(value.score.weight)
    return value


def encode_prompts(
    actors: Actors, prompts: Sequence[Path], count: int, config: RLConfig, salt: str
) -> list[EncodedPrompt]:
    """Up to `count` prompts as the policy is asked them."""
    chosen = choose_fitting(read_prompts(prompts), actors.tokenizer, count, config.max_prompt, salt)
    return [EncodedPrompt(encode_prompt(p.prompt, actors.tokenizer), p.prompt) for p in chosen]


def next_rollout(
    actors: Actors, asked: Sequence[EncodedPrompt], iteration: int, config: RLConfig, parts: Sequence[Tensor],
    samples: int = 1,
) -> tuple[Rollout, float]:  # fmt: skip
    """The rollout of an iteration: the next prompts, round and round, `samples` responses to each. See `roll_out`."""
    count = config.batch // samples
    prompts = [asked[(iteration * count + i) % len(asked)] for i in range(count)]
    seeds = rollout_seeds(config.seed, iteration, config.batch)
    sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=config.temperature)
    return roll_out(actors, prompts, seeds, sampling, config.missing_end, parts, samples)


def roll_out(
    actors: Actors, prompts: Sequence[EncodedPrompt], seeds: Sequence[int], sampling: SamplingConfig,
    missing_end: float, parts: Sequence[Tensor], samples: int = 1,
) -> tuple[Rollout, float]:  # fmt: skip
    """Sample `samples` responses to each prompt, prompt by prompt, and run the models over them.

    What learning compares with is computed in `parts`, the rows that are learned from together.

    Also returns the mean gap between the sampler's log-probabilities and the training forward's: a wrong sampler shows
    here, though not in the ratio.
    """
    release_memory()  # what learning from the last rollout left in pieces
    tokenizer = actors.tokenizer
    lower = trunk_cache_for(actors, len(seeds), max(len(p.ids) for p in prompts) + sampling.max_tokens)
    answers = sample(actors, [p.ids for p in prompts], seeds, sampling, samples, lower)
    release_memory()  # the copy and its keys and values: what learning needs next has other sizes
    asked = [prompt for prompt in prompts for _ in range(samples)]
    responses = pad_responses([p.ids for p in asked], answers, tokenizer.pad_id, actors.policy.embedding.weight.device)
    if lower:
        responses = replace(responses, stream=lower.stream(responses.ids.shape[1], actors.policy.embedding.weight))
    told = [with_response(p.messages, tokenizer.decode(a.ids)) for p, a in zip(asked, answers, strict=True)]
    rollout = score_rollout(
        actors.policy, actors.reference, actors.value, actors.reward.score_responses(responses, told), responses,
        parts=parts, missing_end=missing_end, temperature=sampling.temperature,
    )  # fmt: skip
    unpack(actors.policy)
    return replace(rollout, conversations=told), sampler_gap(answers, rollout)


def sample(
    actors: Actors, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: SamplingConfig, samples: int,
    lower: TrunkCache | None,
) -> list[Response]:  # fmt: skip
    """`samples` answers to each prompt, prompt by prompt: as many prompts at once as their keys and values fit for."""
    policy, end = inference_copy(actors.policy), actors.tokenizer.end_of_turn_id
    longest = max(map(len, prompts)) + sampling.max_tokens
    size = max(1, rows_that_fit(policy.config, longest, len(seeds)) // samples)
    answers: list[Response] = []
    for at in range(0, len(prompts), size):
        some, chance = prompts[at : at + size], seeds[at * samples : (at + size) * samples]
        groups = generate(policy, some, chance, end, sampling, samples, lower=lower)
        answers += [answer for group in groups for answer in group]
    return answers


def trunk_cache_for(actors: Actors, rows: int, length: int) -> TrunkCache | None:
    """Where the layers that all have in common leave something to go on from; nothing where it would take too much
    memory: then each pass runs them again.
    """
    policy = actors.policy
    size = rows * length * policy.config.width * policy.compute_dtype.itemsize
    return TrunkCache(actors.shared_layers, rows, length) if actors.shared_layers and size <= STREAM_AT_MOST else None


def rollout_seeds(seed: int, iteration: int, count: int) -> list[int]:
    """One per response, the same however often the run was stopped.

    "ppo/" is RLOO's and GRPO's salt as well: another one would change every number that they have given so far.
    """
    return [seed_for(seed, f"ppo/{iteration}/{i}") for i in range(count)]


def sampler_gap(answers: Sequence[Response], rollout: Rollout) -> float:
    """Mean |log p of the sampler - log p of the training forward| over the response tokens."""
    mask = rollout.responses.mask
    sampled = torch.tensor([p for answer in answers for p in answer.logprobs], device=mask.device)
    return float((sampled - rollout.logprobs[mask]).abs().mean())


def load_judge(judge: str | None, policy: Path, config: RLConfig, run: Run) -> Reward | None:
    """A second reward, which is not learnt from; without one the run says what it will not see.

    Raises InputError as `load_actors` does.
    """
    if judge:
        return open_one(judge, config, frozen_beside(policy, run.device, config.max_prompt, config.max_tokens))
    run.progress.say(f"{run.out}: no --judge, so a score that rises while the answers get worse goes unseen")
    return None


def judge_score(judge: Reward, rollout: Rollout, missing_end: float) -> float:
    """Mean score of the rollout's responses by the judge, a missing end replaced as it is for the reward."""
    scores = judge.score_responses(rollout.responses, rollout.conversations)
    return float(torch.where(rollout.responses.ended, scores, missing_end).mean())
