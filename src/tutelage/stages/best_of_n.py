"""Rejection sampling: the best of n sampled responses to each prompt becomes a demonstration.

    policy, prompts -> n sampled responses each -> reward model -> the response with the highest score

`tutelage sft` on these demonstrations is rejection-sampling fine-tuning. The KL of the best of n from the policy is at
most log n - (n-1)/n nats (Stiennon et al. 2020). run.json holds the mean score for 1 to n samples
(`evals/best_of_n.py`). Ours: a response without an end of turn pays --missing-end, as in PPO. If the best response is
such a one, or empty, the prompt is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tutelage.data.jsonl import write_jsonl
from tutelage.data.messages import Messages
from tutelage.data.prompts import check_context, choose_fitting
from tutelage.data.records import Demonstration, Prompt, read_prompts
from tutelage.errors import InputError
from tutelage.evals.best_of_n import best_of_n as expected_best
from tutelage.learning.invalid import penalised
from tutelage.learning.kl import best_of_n_kl_bound
from tutelage.options import Advanced, Count, NonNegative, Size
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.open import foreign_models, frozen_loader, open_reward, places_read, reward_inputs
from tutelage.rewards.reward import Reward, with_response
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, Figure, command
from tutelage.runs.folder import load_policy
from tutelage.runs.identity import Inputs
from tutelage.runs.record import record_beside
from tutelage.runs.run import Run, RunConfig, seed_for
from tutelage.sampling.distribution import SampledTemperature, SamplingConfig
from tutelage.sampling.sampler import Response, for_inference, generate, rows_that_fit
from tutelage.text.chat import encode_chat

ROWS = 256  # responses sampled at once


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(RunConfig, RewardsConfig):
    """What is sampled, and how rewards are combined."""

    count: Count = 600
    """Number of prompts, chosen by hash."""
    samples: Size = 16
    """Responses per prompt: n."""
    max_tokens: Count = 40
    """Maximum length of a response in tokens."""
    max_prompt: Count = 64
    """Maximum length of a prompt in tokens; the oldest turns are dropped until it fits."""
    temperature: SampledTemperature = 1.0
    """Sampling temperature."""
    missing_end: Advanced[NonNegative] = 1.0
    """Penalty of a response without an end of turn: it gets its score, at most the mean of the prompt's other
    responses, minus this."""
    uwo_lambda: Advanced[NonNegative] = 0.5
    """Weight of the variance between ensemble members in --ensemble uwo (Coste et al. 2024: 0.5)."""


@dataclass(frozen=True)
class Candidates:
    """The n responses to one prompt."""

    prompt: Prompt
    texts: list[str]
    ended: list[bool]  # True if the response has an end of turn
    scores: list[float]  # by the reward, less --missing-end without an end of turn

    def best(self) -> Demonstration | None:
        """The response with the highest score; None if it has no end of turn or no text."""
        best = self.scores.index(max(self.scores))
        if not self.ended[best] or not self.texts[best].strip():
            return None
        messages = [*self.prompt.prompt, {"role": "assistant", "content": self.texts[best]}]
        return Demonstration(messages, self.prompt.source, "reward-model", conversation=self.prompt.conversation)


def best_of_n(
    policy: Path,
    reward: tuple[str, ...],
    prompts: tuple[Path, ...],
    out: Path,
    config: BestOfNConfig = BestOfNConfig(),
) -> None:
    """Sample n responses to each prompt and keep the one with the highest score, as a demonstration for tutelage sft.

    policy: Model to sample from: an SFT run.
    reward: The reward: a run, FILE.py:FUNCTION, module:FUNCTION or a scorer's URL. Several are an ensemble.
    A function is def f(conversations) -> list[float]: each conversation is a list of {"role", "content"} messages that
    ends with the response, and gets one number.
    prompts: JSONL files with prompts.
    out: JSONL file of demonstrations to write.

    Example: tutelage best-of-n --policy runs/sft --reward runs/reward --prompts prompts.jsonl --out best.jsonl
    """
    record = record_beside(out, "best-of-n", config.overwrite)
    policy = find_base(policy)
    inputs: Inputs = {"policy": policy, "reward": reward_inputs(reward), "prompts": prompts}
    with Run(record, stage="best-of-n", config=config, inputs=inputs, product=out) as run:
        if run.finished:
            return
        sampled, read_at = sample_responses(run, config, policy, reward, read_prompts(prompts))
        kept = [best for candidates in sampled if (best := candidates.best())]
        if not kept:
            raise InputError(
                "best-of-n: no best response has both an end of turn and text; raise --max-tokens or --samples"
            )
        write_jsonl(out, (demonstration.to_record() for demonstration in kept))
        curve, bound = score_curve([c.scores for c in sampled]), best_of_n_kl_bound(config.samples)
        results = {"prompts": len(sampled), "demonstrations": len(kept), "best_scores": curve, "kl_bound": bound}
        results |= read_at
        run.finish(results, ending(policy, out, results))


def ending(policy: Path, out: Path, results: dict[str, Any]) -> Ending:
    curve, left_out = results["best_scores"], results["prompts"] - results["demonstrations"]
    most = max(curve)
    steps = ", ".join(f"{score:.3f} of {n}" for n, score in curve.items())
    warning = f"{left_out:,} prompts were left out, because their best response was empty or cut off at --max-tokens"
    return Ending(
        f"{results['demonstrations']:,} demonstrations, each the best of {most} responses",
        [
            Figure(
                "mean score", curve[most], start=curve[1] if most > 1 else None, better="higher", note=f"best {steps}"
            ),
            Figure("KL from the policy", results["kl_bound"], note="upper bound, in nats", format=".2f"),
        ],
        [warning] if left_out else [],
        [command("sft", "--base", policy, "--demos", out, "--out", "...")],
    )


def sample_responses(
    run: Run, config: BestOfNConfig, policy: Path, reward: Sequence[str], pool: Sequence[Prompt]
) -> tuple[list[Candidates], dict[str, list[str]]]:
    """The chosen prompts with n scored responses each, and where reward models are read; resumes where it stopped."""
    trained, tokenizer = load_policy(policy, run.device, frozen=True)
    check_context(trained.config.context, config.max_prompt, config.max_tokens)
    load = frozen_loader(policy, run.device, config.max_prompt, config.max_tokens)
    model, scorer = for_inference(trained), open_reward(reward, config, load)
    if foreign := foreign_models(scorer):
        run.progress.say(f"{run.out}: {foreign}")
    chosen = choose_fitting(pool, tokenizer, config.count, config.max_prompt, "best-of-n")
    state = run.restore()
    rows = state["rows"] if state else []
    done = [Candidates(prompt, *row) for prompt, row in zip(chosen, rows, strict=False)]
    sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=config.temperature)
    rows_at_once = rows_that_fit(model.config, config.max_prompt + config.max_tokens, ROWS)
    size = max(1, rows_at_once // config.samples)
    for at in range(len(done), len(chosen), size):
        batch = chosen[at : at + size]
        ids = [encode_chat(tokenizer, p.prompt, add_generation_prompt=True).ids for p in batch]
        which = [(at + i, k) for i in range(len(batch)) for k in range(config.samples)]
        seeds = [seed_for(config.seed, f"best-of-n/{i}/{k}") for i, k in which]
        groups = generate(model, ids, seeds, tokenizer.end_ids, sampling, config.samples)
        texts = [[tokenizer.decode(response.ids) for response in group] for group in groups]
        conversations = [[with_response(p.prompt, t) for t in row] for p, row in zip(batch, texts, strict=True)]
        scores = score_responses(scorer, ids, groups, conversations, config.missing_end)
        for prompt, row, group, scored in zip(batch, texts, groups, scores, strict=True):
            done.append(Candidates(prompt, row, [response.ended for response in group], scored))
        run.progress.update(len(done) / len(chosen), responses=f"{len(done) * config.samples}")
        run.checkpoint(len(done), lambda: {"rows": [[c.texts, c.ended, c.scores] for c in done]})
    return done, places_read(scorer)


def score_responses(
    scorer: Reward,
    prompts: Sequence[list[int]],
    groups: Sequence[Sequence[Response]],
    conversations: Sequence[Sequence[Messages]],
    missing_end: float,
) -> list[list[float]]:
    """[prompt][response]: the reward's score. A reward model runs each prompt once for all its responses."""
    texts = [[[*ids, *response.ids] for response in group] for ids, group in zip(prompts, groups, strict=True)]
    scores = scorer.score_groups(texts, conversations)
    if not all(row.isfinite().all() for row in scores):
        raise InputError("best-of-n: the reward model's scores are not finite; train it again, or use --dtype fp32")
    cut = [torch.tensor([not response.ended for response in group]) for group in groups]
    return [penalised(row.cpu(), which, missing_end).tolist() for row, which in zip(scores, cut, strict=True)]


def score_curve(scores: Sequence[Sequence[float]]) -> dict[int, float]:
    """{n: mean score of the best of n}, for n = 1, 2, 4, ... up to the number of samples."""
    most = len(scores[0])
    steps = sorted({2**i for i in range(most.bit_length())} | {most})
    return {n: sum(expected_best(row, row, n) for row in scores) / len(scores) for n in steps}
