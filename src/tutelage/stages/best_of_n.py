"""A reward model's taste to demonstrations: rejection sampling, the best of n answers to each prompt.

    policy, prompts -> n sampled answers each -> reward model -> the favourite, as a demonstration

`tutelage sft` on these demonstrations is rejection-sampling fine-tuning. The favourite has moved from the policy by at
most log n - (n-1)/n nats (Stiennon et al. 2020); printed with it is the whole curve from 1 to n (`evals/best_of_n.py`).
Ours: an answer without an end of turn scores --missing-end, as in PPO; where such an answer, or an empty one, is the
favourite, the prompt is left out, as nobody is to learn from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.data.prompts import check_room, choose_fitting
from tutelage.data.records import Demonstration, Messages, Prompt, read_prompts, write_jsonl
from tutelage.errors import InputError
from tutelage.evals.best_of_n import best_of_n as expected_best
from tutelage.learning.kl import best_of_n_kl_bound
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.open import frozen_beside, open_reward, reward_inputs
from tutelage.rewards.reward import Reward, with_response
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run, RunConfig, read_run, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import Response, for_inference, generate, rows_that_fit
from tutelage.text.chat import encode_chat

ROWS = 256  # answers sampled at once


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(RunConfig, RewardsConfig):
    """What is sampled."""

    count: int = 600
    """Prompts to answer, chosen by hash."""
    samples: int = 16
    """Answers per prompt: n."""
    max_tokens: int = 40
    """Longest answer in tokens."""
    max_prompt: int = 64
    """Longest prompt in tokens; older turns are dropped until it fits."""
    temperature: float = 1.0
    """Of the sampled answers."""
    missing_end: float = -1.0
    """Score of an answer without an end of turn; demonstrations score 0."""
    uwo_lambda: float = 0.5
    """Price of the members' variance in --ensemble uwo (Coste et al. 2024: .5)."""


@dataclass(frozen=True)
class Candidates:
    """The n answers to one prompt."""

    prompt: Prompt
    texts: list[str]
    ended: list[bool]  # True where the end of turn came
    scores: list[float]  # the reward's; missing_end where it did not

    def favourite(self) -> Demonstration | None:
        """None if the answer with the highest score is cut or empty."""
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
    """Sample n answers to each prompt and keep the reward model's favourite, as a demonstration for tutelage sft.

    reward: a run, FILE.py:FUNCTION, module:FUNCTION, or a scorer's URL; several are an ensemble.

    Example: tutelage best-of-n --policy runs/sft --reward runs/reward --prompts prompts.jsonl --out best.jsonl
    """
    record = out.with_suffix(".run")
    if out.exists() and not read_run(record) and not config.overwrite:
        raise InputError(f"best-of-n: {out} is there already; choose another --out, or give --overwrite")
    policy = find_base(policy)
    inputs: Inputs = {"policy": policy, "reward": reward_inputs(reward), "prompts": prompts}
    with Run(record, stage="best-of-n", config=config, inputs=inputs) as run:
        if run.finished and out.is_file():
            return
        answered = sample_answers(run, config, policy, reward, read_prompts(prompts))
        kept = [found for candidates in answered if (found := candidates.favourite())]
        if not kept:
            raise InputError("best-of-n: no favourite has an end of turn and a text; raise --max-tokens or --samples")
        write_jsonl(out, (demonstration.to_record() for demonstration in kept))
        curve, bound = score_curve([c.scores for c in answered]), best_of_n_kl_bound(config.samples)
        told = ", ".join(f"{score:.3f} of {n}" for n, score in curve.items())
        print(f"{out}: {len(kept)} demonstrations; mean score of the best: {told}; KL at most {bound:.2f} nats")
        run.finish({"prompts": len(answered), "demonstrations": len(kept), "best_scores": curve, "kl_bound": bound})


def sample_answers(
    run: Run, config: BestOfNConfig, policy: Path, reward: Sequence[str], pool: Sequence[Prompt]
) -> list[Candidates]:
    """The chosen prompts with n scored answers each; goes on where it was stopped."""
    trained, tokenizer = load_policy(policy, run.device, frozen=True)
    check_room(trained.config.context, config.max_prompt, config.max_tokens)
    load = frozen_beside(policy, run.device, config.max_prompt, config.max_tokens)
    model, scorer = for_inference(trained), open_reward(reward, config, load)
    chosen = choose_fitting(pool, tokenizer, config.count, config.max_prompt, "best-of-n")
    state = run.restore()
    rows = state["rows"] if state else []
    done = [Candidates(prompt, *row) for prompt, row in zip(chosen, rows, strict=False)]
    sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=config.temperature)
    rows_at_once = rows_that_fit(model.config, config.max_prompt + config.max_tokens, ROWS)
    size = max(1, rows_at_once // config.samples)
    for at in range(len(done), len(chosen), size):
        batch = chosen[at : at + size]
        asked = [encode_chat(tokenizer, p.prompt, add_generation_prompt=True).ids for p in batch]
        which = [(at + i, k) for i in range(len(batch)) for k in range(config.samples)]
        seeds = [seed_for(config.seed, f"best-of-n/{i}/{k}") for i, k in which]
        groups = generate(model, asked, seeds, tokenizer.end_of_turn_id, sampling, config.samples)
        texts = [[tokenizer.decode(answer.ids) for answer in group] for group in groups]
        told = [[with_response(p.prompt, text) for text in some] for p, some in zip(batch, texts, strict=True)]
        scores = score_answers(scorer, asked, groups, told, config.missing_end)
        for prompt, some, group, row in zip(batch, texts, groups, scores, strict=True):
            done.append(Candidates(prompt, some, [a.ended for a in group], row))
        run.progress.update(len(done) / len(chosen), answers=f"{len(done) * config.samples}")
        run.checkpoint(len(done), lambda: {"rows": [[c.texts, c.ended, c.scores] for c in done]})
    return done


def score_answers(
    scorer: Reward,
    asked: Sequence[list[int]],
    groups: Sequence[Sequence[Response]],
    told: Sequence[Sequence[Messages]],
    missing_end: float,
) -> list[list[float]]:
    """[prompt][answer]: the reward's score; a model runs a prompt once for all its answers."""
    texts = [[[*ids, *answer.ids] for answer in group] for ids, group in zip(asked, groups, strict=True)]
    scores = [row.tolist() for row in scorer.score_groups(texts, told)]
    if not all(math.isfinite(score) for row in scores for score in row):
        raise InputError("best-of-n: the reward model's scores are not finite; train it again, or use --dtype fp32")
    return [
        [score if answer.ended else missing_end for score, answer in zip(row, group, strict=True)]
        for row, group in zip(scores, groups, strict=True)
    ]


def score_curve(scores: Sequence[Sequence[float]]) -> dict[int, float]:
    """{n: mean score of the best of n}, for 1, 2, 4, ... and as many as were drawn."""
    most = len(scores[0])
    steps = sorted({2**i for i in range(most.bit_length())} | {most})
    return {n: sum(expected_best(row, row, n) for row in scores) / len(scores) for n in steps}
