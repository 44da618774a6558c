"""Prompts to rankings: K answers to each, put in order by annotators.

    policy, prompts -> K sampled answers each -> annotator -> one comparison line per annotator and prompt

InstructGPT has people rank 4 to 9 answers (Ouyang et al. 2022, section 3.5). Until people have ranked, a simulated
panel does (`data/panel.py`): each prompt is ranked by one annotator, some by all three so that agreement can be
measured. Rankings that people made elsewhere come in with --from and leave in the same records.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.data.foreign_rankings import read_rankings
from tutelage.data.panel import ANNOTATORS, Panel, constants_hash
from tutelage.data.prompts import check_room, choose_fitting
from tutelage.data.rankings import strict_pairs
from tutelage.data.records import Comparison, Prompt, read_prompts, write_jsonl
from tutelage.errors import InputError
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run, RunConfig, read_run, seed_for
from tutelage.sampling.distribution import SamplingConfig
from tutelage.sampling.sampler import for_inference, generate, rows_that_fit
from tutelage.text.chat import encode_chat

BATCH = 64  # prompts per sampled batch, fewer where their keys and values would take too much memory


@dataclass(frozen=True, kw_only=True)
class RankConfig(RunConfig):
    """What is sampled and how it is ranked."""

    count: int = 600
    """Prompts to rank answers for, chosen by hash."""
    answers: int = 4
    """Answers per prompt: K, from 4 to 9 (InstructGPT, section 3.5)."""
    max_tokens: int = 40
    """Longest answer in tokens."""
    max_prompt: int = 64
    """Longest prompt in tokens; older turns are dropped until it fits."""
    temperature: float = 1.0
    """Of the sampled answers."""
    shared: float = 0.15
    """Share of the prompts that all three simulated annotators rank, to measure their agreement."""


def rank(
    out: Path,
    policy: Path | None = None,
    prompts: tuple[Path, ...] = (),
    panel: Path | None = None,
    rankings: Annotated[tuple[Path, ...], tyro.conf.arg(name="from")] = (),
    config: RankConfig = RankConfig(),
) -> None:
    """Sample answers and have the simulated panel rank them, or bring in rankings made elsewhere.

    Example: tutelage rank --policy runs/sft --prompts prompts.jsonl --panel panel.json --out ranks.jsonl
    """
    record = out.with_suffix(".run")
    if out.exists() and not read_run(record) and not config.overwrite:
        raise InputError(f"rank: {out} is there already; choose another --out, or give --overwrite")
    if rankings:
        if policy or panel or prompts:
            raise InputError("rank: --from brings in finished rankings; leave --policy, --prompts and --panel out")
        count = write_jsonl(out, (c.to_record() for path in rankings for c in read_rankings(path)))
        print(f"{out}: {count} rankings")
        return
    if not (4 <= config.answers <= 9):
        raise InputError(f"rank: --answers {config.answers}: a ranking has 4 to 9 answers")
    if policy is None or panel is None or not prompts:
        raise InputError(
            "rank: give --policy, --prompts and --panel to sample and rank, or --from to bring in rankings"
        )
    policy = find_base(policy)
    inputs: Inputs = {"policy": policy, "panel": panel, "prompts": prompts}
    with Run(record, stage="rank", config=config, inputs=inputs) as run:
        if run.finished and out.is_file():
            return
        answered = sample_answers(run, config, policy, read_prompts(prompts))
        comparisons = ask_panel(answered, Panel.load(panel), config)
        write_jsonl(out, (c.to_record() for c in comparisons))
        run.finish(
            {
                "prompts": len(answered),
                "comparisons": len(comparisons),
                "strict_pairs": sum(len(strict_pairs(c.ranks)) for c in comparisons),
                "agreement": agreement(comparisons),
                "panel": constants_hash(),
            }
        )


def sample_answers(run: Run, config: RankConfig, policy: Path, pool: list[Prompt]) -> list[tuple[Prompt, list[str]]]:
    """The chosen prompts with K answers each; goes on where it was stopped."""
    trained, tokenizer = load_policy(policy, run.device, frozen=True)
    check_room(trained.config.context, config.max_prompt, config.max_tokens)
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
        for answers in generate(model, ids, seeds, tokenizer.end_of_turn_id, sampling, config.answers):
            texts.append([tokenizer.decode(answer.ids) for answer in answers])
        run.progress.update(len(texts) / len(chosen), answers=f"{len(texts) * config.answers}")
        run.checkpoint(len(texts), lambda: {"texts": texts})
    return list(zip(chosen, texts, strict=True))


def ask_panel(answered: Sequence[tuple[Prompt, list[str]]], panel: Panel, config: RankConfig) -> list[Comparison]:
    """One comparison per prompt and annotator; the first `shared` of the prompts go to all annotators."""
    comparisons = []
    for i, (prompt, answers) in enumerate(answered):
        everyone = i < config.shared * len(answered)
        for annotator in ANNOTATORS if everyone else (ANNOTATORS[i % len(ANNOTATORS)],):
            ranks = panel.annotate(annotator, prompt.prompt, answers, config.seed)
            name = f"simulated:{annotator}"
            comparisons.append(Comparison(prompt.prompt, answers, ranks, name, prompt.source, prompt.conversation))
    return comparisons


def agreement(comparisons: Sequence[Comparison]) -> float | None:
    """Share of the pairs that two annotators both ranked strictly and in the same order; None if none was."""
    same, both = 0, 0
    by_answers: dict[tuple[str, ...], list[set[tuple[int, int]]]] = {}
    for comparison in comparisons:
        by_answers.setdefault(tuple(comparison.responses), []).append(set(strict_pairs(comparison.ranks)))
    for rankings in by_answers.values():
        for i, mine in enumerate(rankings):
            for theirs in rankings[i + 1 :]:
                agreed, opposed = len(mine & theirs), len(mine & {(b, a) for a, b in theirs})
                same, both = same + agreed, both + agreed + opposed
    return round(same / both, 4) if both else None
