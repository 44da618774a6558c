"""The models of reinforcement learning from human feedback, and one rollout of theirs.

    policy run, rewards by name -> policy, reference, reward, value;  prompts -> responses -> Rollout

PPO has all four; RLOO and GRPO have no value network. Without adapters each is a separate set of weights. With adapters
all share one frozen base, the SFT model, and each role has its own adapters and head: the reference has none, and the
value network starts from the reward model's. The layers below the lowest adapter then run once per rollout, and every
role and epoch reuses their output. Where no reward is a model (a Python function, an HTTP scorer), the value network
starts as the policy with a head of zeros, so that it predicts 0 until it has seen returns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.prompts import check_context, choose_fitting
from tutelage.data.rankings import encode_prompt
from tutelage.data.records import Messages, read_prompts
from tutelage.model.gpt import GPT
from tutelage.model.heads import ScalarGPT
from tutelage.model.lora import frozen_depth, without_adapters
from tutelage.model.prepack import unpack
from tutelage.rewards.open import first_run, frozen_loader, open_reward, open_single
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

MAX_STREAM_BYTES = 2**28  # of the residual stream that is kept for a rollout


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


class EncodedPrompt(NamedTuple):
    """A prompt as token ids and as messages."""

    ids: list[int]
    messages: Messages


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


def encode_prompts(
    actors: Actors, prompts: Sequence[Path], count: int, config: RLConfig, salt: str
) -> list[EncodedPrompt]:
    """Up to `count` prompts that fit the policy, chosen at random."""
    chosen = choose_fitting(read_prompts(prompts), actors.tokenizer, count, config.max_prompt, salt)
    return [EncodedPrompt(encode_prompt(p.prompt, actors.tokenizer), p.prompt) for p in chosen]


def next_rollout(
    actors: Actors,
    prompts: Sequence[EncodedPrompt],
    iteration: int,
    config: RLConfig,
    parts: Sequence[Tensor],
    samples: int = 1,
) -> tuple[Rollout, float]:
    """The rollout of an iteration: the next prompts, cyclically, with `samples` responses to each. See `roll_out`."""
    count = config.batch // samples
    chosen = [prompts[(iteration * count + i) % len(prompts)] for i in range(count)]
    seeds = rollout_seeds(config.seed, iteration, config.batch)
    sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=config.temperature)
    return roll_out(actors, chosen, seeds, sampling, config.missing_end, parts, samples)


def roll_out(
    actors: Actors,
    prompts: Sequence[EncodedPrompt],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    missing_end: float,
    parts: Sequence[Tensor],
    samples: int = 1,
) -> tuple[Rollout, float]:
    """Sample `samples` responses to each prompt, prompt by prompt, and run all models over them.

    Log-probabilities are computed in `parts`, the minibatches of the first epoch, so that the first ratio is exactly 1.

    Also returns the mean gap between the sampler's log-probabilities and those of the training forward. A wrong sampler
    shows here, but not in the ratio.
    """
    policy, tokenizer = actors.policy, actors.tokenizer
    release_memory()  # fragments that learning from the last rollout left
    trunk_cache = trunk_cache_for(actors, len(seeds), max(len(p.ids) for p in prompts) + sampling.max_tokens)
    sampled = sample(actors, [p.ids for p in prompts], seeds, sampling, samples, trunk_cache)
    release_memory()  # the sampler's copy and KV cache; learning needs blocks of other sizes
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    responses = pad_responses([p.ids for p in repeated], sampled, tokenizer.pad_id, policy.embedding.weight.device)
    if trunk_cache:
        responses = replace(responses, stream=trunk_cache.stream(responses.ids.shape[1], policy.embedding.weight))
    texts = (tokenizer.decode(response.ids) for response in sampled)
    conversations = [with_response(p.messages, text) for p, text in zip(repeated, texts, strict=True)]
    scores = actors.reward.score_responses(responses, conversations)
    limits = dict(missing_end=missing_end, temperature=sampling.temperature)
    rollout = score_rollout(policy, actors.reference, actors.value, scores, responses, parts=parts, **limits)
    unpack(policy)
    return replace(rollout, conversations=conversations), sampler_gap(sampled, rollout)


def sample(
    actors: Actors,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    samples: int,
    trunk_cache: TrunkCache | None,
) -> list[Response]:
    """`samples` responses to each prompt, prompt by prompt, in batches whose KV cache fits."""
    policy, end = inference_copy(actors.policy), actors.tokenizer.end_of_turn_id
    longest = max(map(len, prompts)) + sampling.max_tokens
    size = max(1, rows_that_fit(policy.config, longest, len(seeds)) // samples)
    responses: list[Response] = []
    for at in range(0, len(prompts), size):
        batch, batch_seeds = prompts[at : at + size], seeds[at * samples : (at + size) * samples]
        groups = generate(policy, batch, batch_seeds, end, sampling, samples, trunk_cache=trunk_cache)
        responses += [response for group in groups for response in group]
    return responses


def trunk_cache_for(actors: Actors, rows: int, length: int) -> TrunkCache | None:
    """A cache for the output of the shared layers; None if there are none, or if it would exceed MAX_STREAM_BYTES.

    Without it every forward pass runs these layers again.
    """
    policy = actors.policy
    size = rows * length * policy.config.width * policy.compute_dtype.itemsize
    return TrunkCache(actors.shared_layers, rows, length) if actors.shared_layers and size <= MAX_STREAM_BYTES else None


def rollout_seeds(seed: int, iteration: int, count: int) -> list[int]:
    """One seed per response, the same however often the run was interrupted.

    RLOO and GRPO use the salt "ppo/", too: another one would change all their published numbers.
    """
    return [seed_for(seed, f"ppo/{iteration}/{i}") for i in range(count)]


def sampler_gap(responses: Sequence[Response], rollout: Rollout) -> float:
    """Mean |log p of the sampler - log p of the training forward| over the response tokens."""
    mask = rollout.responses.mask
    sampled = torch.tensor([p for response in responses for p in response.logprobs], device=mask.device)
    return float((sampled - rollout.logprobs[mask]).abs().mean())


def load_judge(judge: str | None, policy: Path, config: RLConfig, run: Run) -> Reward | None:
    """The held-out reward that only monitors; without one the run says what it cannot notice.

    Raises InputError as `load_actors` does.
    """
    if judge:
        return open_single(judge, config, frozen_loader(policy, run.device, config.max_prompt, config.max_tokens))
    run.progress.say(f"{run.out}: no --judge, so nothing notices a score that rises while the responses get worse")
    return None


def judge_score(judge: Reward, rollout: Rollout, missing_end: float) -> float:
    """Mean score of the rollout's responses by the judge; a missing end scores `missing_end`, as for the reward."""
    scores = judge.score_responses(rollout.responses, rollout.conversations)
    return float(torch.where(rollout.responses.ended, scores, missing_end).mean())
