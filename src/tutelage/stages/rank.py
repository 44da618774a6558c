"""Rankings of sampled responses: K responses to each prompt, ranked by annotators.

    policy, prompts -> K sampled responses each -> annotators -> one comparison per annotator and prompt

InstructGPT had people rank 4 to 9 responses (Ouyang et al. 2022, section 3.5). Here a simulated panel ranks
(`data/panel.py`) until people have: one annotator per prompt, and all three on a share of the prompts to measure their
agreement. Rankings that people made elsewhere are imported with --from and written as the same records.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.data.jsonl import write_jsonl
from tutelage.data.panel import ANNOTATORS, Panel, constants_hash
from tutelage.data.prompts import check_context, choose_fitting
from tutelage.data.rankings import strict_pairs
from tutelage.data.records import Comparison, Prompt, read_comparisons, read_prompts
from tutelage.data.training_set import LeftOut
from tutelage.errors import InputError
from tutelage.options import Advanced, Count, Share
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, Figure, command
from tutelage.runs.folder import load_policy
from tutelage.runs.identity import Inputs
from tutelage.runs.log import Progress
from tutelage.runs.record import record_beside
from tutelage.runs.run import Run, RunConfig, seed_for
from tutelage.sampling.distribution import SampledTemperature, SamplingConfig
from tutelage.sampling.sampler import for_inference, generate, rows_that_fit
from tutelage.text.chat import encode_chat

BATCH = 64  # prompts per sampled batch; fewer if their KV cache would take too much memory


@dataclass(frozen=True, kw_only=True)
class RankConfig(RunConfig):
    """What is sampled, and who ranks it."""

    count: Count = 600
    """Number of prompts, chosen by hash."""
    answers: Count = 4
    """Responses per prompt: K, from 4 to 9 (InstructGPT, section 3.5)."""
    max_tokens: Count = 40
    """Maximum length of a response in tokens."""
    max_prompt: Count = 64
    """Maximum length of a prompt in tokens; the oldest turns are dropped until it fits."""
    temperature: SampledTemperature = 1.0
    """Sampling temperature."""
    shared: Advanced[Share] = 0.15
    """Share of the prompts that all three simulated annotators rank, which measures their agreement."""


def rank(
    out: Path,
    policy: Path | None = None,
    prompts: tuple[Path, ...] = (),
    panel: Path | None = None,
    rankings: Annotated[tuple[Path, ...], tyro.conf.arg(name="from")] = (),
    config: RankConfig = RankConfig(),
) -> None:
    """Sample responses and have the simulated panel rank them, or import rankings made elsewhere.

    out: JSONL file of comparisons to write.
    policy: Model to sample responses from: an SFT run.
    prompts: JSONL files with prompts.
    panel: The simulated panel that ranks the responses: the panel.json of tutelage collect.
    rankings: Files with finished rankings or pairs to import, in place of sampling: JSONL, or one JSON array.

    Example: tutelage rank --policy runs/sft --prompts prompts.jsonl --panel panel.json --out ranks.jsonl
    """
    record = record_beside(out, "rank", config.overwrite)
    if rankings:
        if policy or panel or prompts:
            raise InputError("rank: --from imports finished rankings; leave --policy, --prompts and --panel out")
        Progress("rank").end(import_rankings(out, rankings).lines(out))
        return
    if not (4 <= config.answers <= 9):
        raise InputError(f"rank: --answers {config.answers}: give 4 to 9 responses per prompt")
    if policy is None or panel is None or not prompts:
        raise InputError("rank: give --policy, --prompts and --panel to sample and rank, or --from to import rankings")
    policy = find_base(policy)
    inputs: Inputs = {"policy": policy, "panel": panel, "prompts": prompts}
    with Run(record, stage="rank", config=config, inputs=inputs, product=out) as run:
        if run.finished:
            return
        sampled = sample_responses(run, config, policy, read_prompts(prompts))
        comparisons = ask_panel(sampled, Panel.load(panel), config)
        write_jsonl(out, (c.to_record() for c in comparisons))
        counts = {"prompts": len(sampled), "comparisons": len(comparisons)}
        pairs, agreed = sum(len(strict_pairs(c.ranks)) for c in comparisons), agreement(comparisons)
        ending = Ending(
            f"{len(comparisons):,} rankings of {config.answers} responses each, for {len(sampled):,} prompts",
            [
                Figure("pairs in a strict order", pairs, format=",d"),
                Figure("pairs on which two annotators agree", agreed, format=".1%"),
            ],
            [] if pairs else ["all responses are tied, so there is nothing to train on; raise --temperature"],
            next_commands(out, policy),
        )
        run.finish(counts | {"strict_pairs": pairs, "agreement": agreed, "panel": constants_hash()}, ending)


def import_rankings(out: Path, paths: Sequence[Path]) -> Ending:
    """Write the rankings and pairs of these files as comparisons. Raises InputError if there is none."""
    unpaired: list[str] = []
    comparisons = read_comparisons(paths, unpaired)
    if not comparisons:
        raise InputError(unpaired[0])
    count = write_jsonl(out, (c.to_record() for c in comparisons))
    left_out = LeftOut()
    left_out.add_unpaired(unpaired)
    return Ending(f"imported {count:,} rankings", warnings=left_out.sentences, next=next_commands(out))


def next_commands(out: Path, policy: Path | str = "SFT_RUN") -> list[str]:
    return [
        command("reward", "--base", policy, "--comparisons", out, "--out", "..."),
        command("dpo", "--policy", policy, "--comparisons", out, "--out", "..."),
    ]


def sample_responses(run: Run, config: RankConfig, policy: Path, pool: list[Prompt]) -> list[tuple[Prompt, list[str]]]:
    """The chosen prompts with K responses each; resumes where it was stopped."""
    trained, tokenizer = load_policy(policy, run.device, frozen=True)
    check_context(trained.config.context, config.max_prompt, config.max_tokens)
    model = for_inference(trained)
    chosen = choose_fitting(pool, tokenizer, config.count, config.max_prompt, "rank")
    state = run.restore()
    texts: list[list[str]] = state["texts"] if state else []
    sampling = SamplingConfig(max_tokens=config.max_tokens, temperature=config.temperature)
    rows = rows_that_fit(model.config, config.max_prompt + config.max_tokens, BATCH * config.answers)
    size = max(1, rows // config.answers)
    for at in range(len(texts), len(chosen), size):
        batch = chosen[at : at + size]
        ids = [encode_chat(tokenizer, p.prompt, add_generation_prompt=True).ids for p in batch]
        seeds = [seed_for(config.seed, f"rank/{at + i}/{k}") for i in range(len(batch)) for k in range(config.answers)]
        for responses in generate(model, ids, seeds, tokenizer.end_ids, sampling, config.answers):
            texts.append([tokenizer.decode(response.ids) for response in responses])
        run.progress.update(len(texts) / len(chosen), responses=f"{len(texts) * config.answers}")
        run.checkpoint(len(texts), lambda: {"texts": texts})
    return list(zip(chosen, texts, strict=True))


def ask_panel(sampled: Sequence[tuple[Prompt, list[str]]], panel: Panel, config: RankConfig) -> list[Comparison]:
    """One comparison per prompt and annotator; all annotators rank the first `shared` share of the prompts."""
    comparisons = []
    for i, (prompt, responses) in enumerate(sampled):
        everyone = i < config.shared * len(sampled)
        for annotator in ANNOTATORS if everyone else (ANNOTATORS[i % len(ANNOTATORS)],):
            ranks = panel.annotate(annotator, prompt.prompt, responses, config.seed)
            name = f"simulated:{annotator}"
            comparisons.append(Comparison(prompt.prompt, responses, ranks, name, prompt.source, prompt.conversation))
    return comparisons


def agreement(comparisons: Sequence[Comparison]) -> float | None:
    """Of the pairs that two annotators both ranked without a tie, the share in the same order; None without any."""
    same, both = 0, 0
    by_responses: dict[tuple[str, ...], list[set[tuple[int, int]]]] = {}
    for comparison in comparisons:
        by_responses.setdefault(tuple(comparison.responses), []).append(set(strict_pairs(comparison.ranks)))
    for rankings in by_responses.values():
        for i, first in enumerate(rankings):
            for second in rankings[i + 1 :]:
                agreed, opposed = len(first & second), len(first & {(b, a) for a, b in second})
                same, both = same + agreed, both + agreed + opposed
    return round(same / both, 4) if both else None
