"""One rollout of the models of reinforcement learning.

prompts -> sampled responses -> scores, log-probabilities of policy and reference, values -> Rollout
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.data.messages import Messages
from tutelage.data.prompts import choose_fitting
from tutelage.data.rankings import encode_prompt
from tutelage.data.records import read_prompts
from tutelage.learning.invalid import penalised
from tutelage.model.prepack import unpack
from tutelage.rewards.reward import Reward, with_response
from tutelage.rlhf.actors import Actors
from tutelage.rlhf.config import RLConfig
from tutelage.runs.device import release_memory
from tutelage.runs.run import seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import Responses, Rollout, pad_responses, score_rollout
from tutelage.sampling.sampler import Response, generate, inference_copy, rows_that_fit
from tutelage.sampling.trunk_cache import TrunkCache

MAX_STREAM_BYTES = 2**28  # of the residual stream that is kept for a rollout


class EncodedPrompt(NamedTuple):
    """A prompt as token ids and as messages."""

    ids: list[int]
    messages: Messages


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
    return roll_out(actors, chosen, seeds, config, parts, samples)


def roll_out(
    actors: Actors,
    prompts: Sequence[EncodedPrompt],
    seeds: Sequence[int],
    config: RLConfig,
    parts: Sequence[Tensor],
    samples: int = 1,
) -> tuple[Rollout, float]:
    """Sample `samples` responses to each prompt, prompt by prompt, and run all models over them.

    Log-probabilities are computed in `parts`, the minibatches of the first epoch, so that the first ratio is exactly 1.

    Also returns the mean gap between the sampler's log-probabilities and those of the training forward. A wrong sampler
    shows here, but not in the ratio.
    """
    policy, tokenizer = actors.policy, actors.tokenizer
    sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=config.temperature)
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
    scores = rewards_of(actors.reward, responses, conversations, config, tokenizer.end_of_turn_id)
    models = (policy, actors.reference, actors.value)
    rollout = score_rollout(*models, scores, responses, parts=parts, temperature=config.temperature)
    unpack(policy)
    return replace(rollout, conversations=conversations), sampler_gap(sampled, rollout)


def rewards_of(
    reward: Reward, responses: Responses, conversations: Sequence[Messages], config: RLConfig, end: int
) -> Tensor:
    """(B,) scores by the reward, less what responses pay that were cut or are too short. `end`: the end of turn."""
    lengths = responses.mask.sum(1)
    blank = torch.tensor([not messages[-1]["content"].strip() for messages in conversations], device=lengths.device)
    short = (lengths < config.min_answer) | (blank & (config.min_answer > 0))
    scores = reward.score_responses(responses.ending_with(end), conversations)
    return penalised(scores, ~responses.ended | short, config.missing_end)


def sample(
    actors: Actors,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    samples: int,
    trunk_cache: TrunkCache | None,
) -> list[Response]:
    """`samples` responses to each prompt, prompt by prompt, in batches whose KV cache fits."""
    policy, ends = inference_copy(actors.policy), actors.tokenizer.end_ids
    longest = max(map(len, prompts)) + sampling.max_tokens
    size = max(1, rows_that_fit(policy.config, longest, len(seeds)) // samples)
    responses: list[Response] = []
    for at in range(0, len(prompts), size):
        batch, batch_seeds = prompts[at : at + size], seeds[at * samples : (at + size) * samples]
        groups = generate(policy, batch, batch_seeds, ends, sampling, samples, trunk_cache=trunk_cache)
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


def judge_score(judge: Reward, rollout: Rollout, config: RLConfig, end: int) -> float:
    """Mean score of the rollout's responses by the judge, with the penalties of the reward."""
    return float(rewards_of(judge, rollout.responses, rollout.conversations, config, end).mean())
