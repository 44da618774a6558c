"""Models side by side on the same held-out prompts.

    base, SFT, reward model, policies -> one answer per prompt and model -> the table, and samples to read

Every model gets the same token ids, one answer each at temperature 1, seeded per prompt. Best-of-n takes the answer
of the SFT model that the reward model likes best. Gold is the simulated panel's utility, without noise
(`data/panel.py`): win rates against SFT, ties one half, bootstrapped by conversation. KL is the mean of
log pi(y|x) - log pi_SFT(y|x) over the model's own answers; for best-of-n it is the bound log n - (n-1)/n (Stiennon et
al. 2020), marked as such.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from tutelage.atomic import atomic_write
from tutelage.data.packing import stream
from tutelage.data.panel import Panel, constants_hash
from tutelage.data.prompts import check_room, choose_fitting, text_length
from tutelage.data.records import Prompt, read_documents, read_prompts
from tutelage.errors import InputError
from tutelage.evals.perplexity import bits_per_byte, check_windows
from tutelage.evals.preference import win_rate
from tutelage.evals.text_statistics import distinct
from tutelage.learning.kl import best_of_n_kl_bound
from tutelage.model.gpt import GPT
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.open import frozen_beside, open_reward, reward_inputs
from tutelage.rewards.reward import Reward, with_answer
from tutelage.runs.base import find_base
from tutelage.runs.device import Device, hand_back_memory
from tutelage.runs.folder import load_policy, same_tokenizer
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run, RunConfig, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.rollout import pad_responses, response_logprobs
from tutelage.sampling.sampler import Answer, for_inference, generate, rows_that_fit
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

ROWS = 256  # answers sampled at once
SCORED_AT_ONCE = 128  # answers per forward pass
DISTINCT_TOKENS = 12  # of each answer, for distinct-n


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RunConfig, RewardsConfig):
    """What is asked and how long the answers may be."""

    count: int = 300
    """Held-out prompts, chosen by hash."""
    per_conversation: int = 2
    """At most so many prompts from one conversation."""
    max_tokens: int = 40
    """Longest answer in tokens."""
    max_prompt: int = 128
    """Longest prompt in tokens; older turns are dropped until it fits."""
    best_of: tuple[int, ...] = (4, 16)
    """Best-of-n baselines: the reward model's favourite of n answers of the SFT model."""
    samples: int = 12
    """Prompts whose answers are printed: the first ones."""
    heldout_windows: int = 256
    """Windows of held-out pretraining text for bits per byte."""
    heldout_window: int = 0
    """Tokens of such a window; 0 is the model's whole context, or 512 of it."""


@dataclass(frozen=True)
class Bench:
    """What every model is measured with."""

    words: Tokenizer
    prompts: list[Prompt]
    asked: list[list[int]]  # the prompts, encoded
    base: GPT
    sft: GPT
    scorer: Reward
    panel: Panel
    config: EvaluateConfig

    @property
    def clusters(self) -> list[str]:
        """Prompts of one conversation are alike: which belong together."""
        return [p.conversation or str(i) for i, p in enumerate(self.prompts)]


def evaluate(
    policies: tyro.conf.Positional[tuple[Path, ...]],
    base: Path,
    sft: Path,
    reward: tuple[str, ...],
    panel: Path,
    prompts: tuple[Path, ...],
    heldout: tuple[Path, ...],
    out: Path,
    config: EvaluateConfig = EvaluateConfig(),
) -> None:
    """Compare models on held-out prompts: base, SFT, best-of-n, and the policies given, by their folder's name.

    reward: a run, FILE.py:FUNCTION, module:FUNCTION, or a scorer's URL; several are an ensemble.

    Example: tutelage evaluate runs/ppo runs/ppo-ptx --base runs/base --sft runs/sft --reward runs/reward
    --panel data/panel.json --prompts data/prompts.test.jsonl --heldout data/corpus.valid.jsonl --out runs/evaluate
    """
    folders = {"base": base, "sft": sft} | {path.name: path for path in policies}
    if len(folders) != 2 + len(policies):
        raise InputError("evaluate: two of the models have the same folder name; rename one, the table goes by names")
    folders = {name: find_base(path) for name, path in folders.items()}
    base, sft, *policies = folders.values()  # type: ignore[assignment]
    inputs: Inputs = {
        "policies": policies, "base": base, "sft": sft, "reward": reward_inputs(reward), "panel": panel,
        "prompts": prompts, "heldout": heldout,
    }  # fmt: skip
    with Run(out, stage="evaluate", config=config, inputs=inputs) as run:
        if run.finished:
            return
        for folder in folders.values():
            same_tokenizer(sft, folder)
        bench, unseen = lay_out(config, run.device, base, sft, reward, panel, prompts, heldout)
        measured = measure_all(run, bench, folders, unseen)
        report = compare(bench, measured)
        with atomic_write(out / "evaluation.json") as file:
            json.dump(report, file, indent=2, ensure_ascii=False)
        run.finish({name: row["gold_win_rate"] for name, row in report["models"].items()})


def lay_out(
    config: EvaluateConfig, device: Device, base: Path, sft: Path, reward: Sequence[str], panel: Path,
    prompts: Sequence[Path], heldout: Sequence[Path],
) -> tuple[Bench, Any]:  # fmt: skip
    """Load what all models share, and the held-out text as a token stream."""
    model, words = load_policy(sft, device)
    check_room(model.config.context, config.max_prompt, config.max_tokens)
    scorer = open_reward(reward, config, frozen_beside(sft, device))
    pool = read_prompts(prompts)
    chosen = choose_fitting(pool, words, config.count, config.max_prompt, "evaluate", config.per_conversation)
    asked = [encode_chat(words, p.prompt, add_generation_prompt=True).ids for p in chosen]
    texts = [document.plain_text() for document in read_documents(heldout)]
    unseen = stream(words.encode_batch(texts), words.end_of_text_id)
    check_windows(unseen, text_length(config.heldout_window, model.config.context, "--heldout-window"))
    untouched = load_policy(base, device)[0].eval().requires_grad_(False)
    untouched = untouched.to(untouched.compute_dtype)  # it only scores here: packed for writing it would be twice
    bench = Bench(words, chosen, asked, untouched, for_inference(model), scorer, Panel.load(panel), config)
    return bench, unseen


def measure_all(run: Run, bench: Bench, folders: dict[str, Path], unseen: Any) -> dict[str, dict[str, Any]]:
    """Each model's answers with what can be said of them; goes on after the last model that was finished."""
    state = run.restore()
    measured: dict[str, dict[str, Any]] = state["measured"] if state else {}
    ladder = ["base", "sft", *(f"best-of-{n}" for n in bench.config.best_of), *list(folders)[2:]]
    for i, name in enumerate(ladder):
        if name in measured:
            continue
        run.progress.update(i / len(ladder), model=name)
        if name.startswith("best-of-") and name not in folders:
            measured.update(measure_best_of(bench))
        else:
            trained = bench.sft if name == "sft" else load_policy(folders[name], run.device)[0]
            measured[name] = measure(bench, trained, unseen)
        run.checkpoint(i + 1, lambda: {"measured": measured})
    run.progress.update(1.0)
    return measured


def measure(bench: Bench, trained: GPT, unseen: Any) -> dict[str, Any]:
    """One model's answers, what can be said of them, and how well it predicts unseen text."""
    model = for_inference(trained)
    answers = [answer for (answer,) in sample(bench, model, 1)]
    by_sft = logprobs(bench, bench.sft, bench.asked, answers)
    own = by_sft if model is bench.sft else logprobs(bench, model, bench.asked, answers)
    measured = describe(bench, answers, by_sft) | {"kl": float((own - by_sft).mean())}
    length = text_length(bench.config.heldout_window, model.config.context, "--heldout-window")
    bits = bits_per_byte(model, unseen, bench.words.token_bytes(), bench.config.heldout_windows, length)
    return measured | {"bits_per_byte": bits}


def sample(bench: Bench, model: GPT, count: int) -> list[list[Answer]]:
    """`count` answers to each prompt. The first one has the same chance numbers for every model and count."""
    answers: dict[int, list[Answer]] = {}
    sampling = SamplingConfig(max_tokens=bench.config.max_tokens)
    order = sorted(range(len(bench.asked)), key=lambda i: len(bench.asked[i]))  # like lengths waste no padding
    size = max(1, rows_that_fit(model.config, bench.config.max_prompt + bench.config.max_tokens, ROWS) // count)
    for at in range(0, len(order), size):
        hand_back_memory()  # keys and values of the last batch, in other sizes
        some = order[at : at + size]
        seeds = [seed_for(bench.config.seed, f"evaluate/{i}/{k}") for i in some for k in range(count)]
        batch = [bench.asked[i] for i in some]
        answers |= zip(some, generate(model, batch, seeds, bench.words.end_of_turn_id, sampling, count), strict=True)
    return [answers[i] for i in range(len(order))]


def describe(bench: Bench, answers: Sequence[Answer], by_sft: Tensor) -> dict[str, Any]:
    """One answer per prompt -> what it says, gold, reward, length, diversity. by_sft (N,): log pi_SFT of each."""
    texts = [bench.words.decode(answer.ids) for answer in answers]
    ids = [answer.ids[:-1] if answer.ended else answer.ids for answer in answers]
    gold = [bench.panel.utility(p.prompt, text) for p, text in zip(bench.prompts, texts, strict=True)]
    return {
        "texts": texts,
        "golds": gold,
        "gold": sum(gold) / len(gold),
        "reward": float(rewards(bench, [[answer] for answer in answers]).mean()),
        "length": sum(len(answer.ids) for answer in answers) / len(answers),
        "end_of_turn_rate": sum(answer.ended for answer in answers) / len(answers),
        "distinct_1": distinct(ids, 1, DISTINCT_TOKENS),
        "distinct_2": distinct(ids, 2, DISTINCT_TOKENS),
        "answer_fit": answer_fit(bench, answers, by_sft),
        "nats_under_base": nats_under_base(bench, answers),
    }


def measure_best_of(bench: Bench) -> dict[str, dict[str, Any]]:
    """The reward model's favourite of the first n SFT answers, for each n. Its KL is a bound; it has no own weights."""
    most = max(bench.config.best_of)
    candidates = sample(bench, bench.sft, most)
    scores = rewards(bench, candidates)
    rows = {}
    for n in bench.config.best_of:
        favourites = scores[:, :n].argmax(1).tolist()
        chosen = [answers[i] for answers, i in zip(candidates, favourites, strict=True)]
        bound = {"kl": best_of_n_kl_bound(n), "kl_is_bound": True, "bits_per_byte": None}
        rows[f"best-of-{n}"] = describe(bench, chosen, logprobs(bench, bench.sft, bench.asked, chosen)) | bound
    return rows


def rewards(bench: Bench, answers: Sequence[Sequence[Answer]]) -> Tensor:
    """(prompts, answers each): the reward's scores; a model's are read at the end-of-turn token.

    Cut answers get one, so that all can be compared.
    """
    end = bench.words.end_of_turn_id
    texts = [
        [[*asked, *answer.ids, *([] if answer.ended else [end])] for answer in some]
        for asked, some in zip(bench.asked, answers, strict=True)
    ]
    told = [
        [with_answer(p.prompt, bench.words.decode(answer.ids)) for answer in some]
        for p, some in zip(bench.prompts, answers, strict=True)
    ]
    return torch.stack(bench.scorer.score_groups(texts, told))


@torch.inference_mode()
def logprobs(bench: Bench, model: GPT, asked: Sequence[Sequence[int]], answers: Sequence[Answer]) -> Tensor:
    """(N,): log pi(answer | prompt), summed over the answer's tokens."""
    sums = []
    for at in range(0, len(answers), SCORED_AT_ONCE):
        batch = pad_responses(
            asked[at : at + SCORED_AT_ONCE], answers[at : at + SCORED_AT_ONCE], bench.words.pad_id,
            model.embedding.weight.device,
        )  # fmt: skip
        sums.append(response_logprobs(model, batch).sum(1))
    return torch.cat(sums)


def answer_fit(bench: Bench, answers: Sequence[Answer], own: Tensor) -> float:
    """How often SFT finds an answer likelier after its own prompt than after another one's (a fixed shuffle).

    own (N,): its log-probabilities after their own prompts.
    """
    generator = torch.Generator().manual_seed(seed_for(bench.config.seed, "answer-fit"))
    order = torch.randperm(len(answers), generator=generator).tolist()
    other: list[Sequence[int]] = [[]] * len(answers)
    for here, there in zip(order, [*order[1:], order[0]], strict=True):  # one cycle: nobody keeps their own prompt
        other[here] = bench.asked[there]
    return float((own > logprobs(bench, bench.sft, other, answers)).float().mean())


def nats_under_base(bench: Bench, answers: Sequence[Answer]) -> float:
    """-log p of the answers' tokens under the base model, token mean: it rises where answers stop being fluent."""
    total = sum(len(answer.ids) for answer in answers)
    return -float(logprobs(bench, bench.base, bench.asked, answers).sum()) / total


def compare(bench: Bench, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The table: every model's figures, and its win rate against SFT; and the samples."""
    clusters = bench.clusters
    models = {}
    for name, row in measured.items():
        figures = {"kl_is_bound": False} | {k: v for k, v in row.items() if k not in ("texts", "golds")}
        if name == "sft":
            figures |= {"gold_win_rate": 0.5, "gold_win_rate_ci": None, "kl": 0.0}
        else:
            pairs = zip(row["golds"], measured["sft"]["golds"], strict=True)
            rate, interval = win_rate([preference(a, b) for a, b in pairs], clusters, bench.config.seed)
            figures |= {"gold_win_rate": rate, "gold_win_rate_ci": list(interval)}
        models[name] = figures
    samples = [
        {"prompt": p.prompt, "answers": {name: row["texts"][i] for name, row in measured.items()}}
        for i, p in enumerate(bench.prompts[: bench.config.samples])
    ]
    return {"models": models, "samples": samples, "prompts": len(bench.prompts), "panel": constants_hash()}


def preference(mine: float, theirs: float) -> float:
    """1 where mine is better than theirs, 0 where it is worse, .5 where they are equal."""
    return 0.5 if abs(mine - theirs) < 1e-9 else float(mine > theirs)
