"""Demonstrations to an assistant: step 1 of InstructGPT (Ouyang et al. 2022, section 3.5).

    conversations -> windows that fit -> packed rows -> L = -mean log p(token), over the assistant's tokens only

What is learnt is each answer and the end of its turn; the paper does not say whether it also learnt the prompts, and we
do not. Conversations share rows but cannot see each other (`data/packing.py`). The head runs on supervised tokens only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from tutelage.data.demonstrations import windows
from tutelage.data.packing import Example, Packed, pack, pack_rows
from tutelage.data.prompts import text_length
from tutelage.data.records import read_demonstrations
from tutelage.errors import InputError
from tutelage.learning.head import next_token_loss
from tutelage.learning.optimizer import OptimizerConfig, scheduled_adamw
from tutelage.model.gpt import GPT
from tutelage.model.parameters import trainable
from tutelage.model.vocabulary import renew_untrained
from tutelage.runs.adapter import AdapterConfig, adapt, save_tuned
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy
from tutelage.runs.run import Run
from tutelage.runs.steps import training_steps
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

CHUNK = 512  # conversations packed together: enough to fill rows, few enough to keep their order random


@dataclass(frozen=True, kw_only=True)
class SFTConfig(OptimizerConfig, AdapterConfig):
    """One fine-tuning run on demonstrations. Defaults suit a small model on a laptop."""

    tokens: int = 500_000
    """Tokens of packed rows to train on; more than the demonstrations hold means further epochs."""
    batch: int = 8
    """Rows per optimizer step."""
    lr: float = 2e-3
    """Peak rate of AdamW, for models of a few million parameters; InstructGPT's 1.3B uses 9.65e-6 (appendix C.1)."""
    warmup: float = 0.03
    """Share of the steps in which the rate rises; the fresh marker tokens need it."""
    evaluate_every: int = 25
    """Steps between two held-out evaluations."""
    min_answer: int = 0
    """Assistant turns of fewer tokens than this, end of turn included, are context only: "ok" teaches little."""
    max_answer: int = 0
    """So are those of more tokens: where answers are limited, a long one teaches not to end. 0 is no limit."""
    heldout_rows: int = 32
    """Packed rows of held-out demonstrations per evaluation."""
    row: int = 0
    """Tokens of a packed row; 0 is the model's whole context, or 512 of it."""


def sft(
    base: Path,
    demos: tuple[Path, ...],
    out: Path,
    heldout: tuple[Path, ...] = (),
    config: SFTConfig = SFTConfig(),
) -> None:
    """Fine-tune a pretrained GPT on demonstrations.

    Example: tutelage sft --base runs/base --demos data/demonstrations.train.jsonl --out runs/sft
    """
    base = find_base(base)
    with Run(out, stage="sft", config=config, inputs={"base": base, "demos": demos, "heldout": heldout}) as run:
        if run.finished:
            return
        model, tokenizer = load_policy(base, run.device, frozen=config.adapted)
        # Adapters leave the embedding alone: a fresh marker would never be trained.
        markers = [] if config.adapted else list(tokenizer.special.values())
        renewed = renew_untrained(model, markers, run.generator("markers"))
        model = adapt(model, config, run.generator("adapter")).train()
        length = text_length(config.row, model.config.context, "--row")
        examples, dropped = read_examples(demos, tokenizer, config, length, config.tokens, run.generator("demos"))
        if not examples:
            raise InputError(f"sft: no demonstration fits the context of {length} tokens; shorten them")
        if not any(learn for example in examples for learn in example.supervised):
            raise InputError(
                f"sft: no answer has {config.min_answer} to {config.max_answer or 'any number of'} tokens; "
                "change --min-answer or --max-answer"
            )
        enough = config.heldout_rows * length
        unseen, _ = read_examples(heldout, tokenizer, config, length, enough, run.generator("heldout"))
        held = packed_rows(unseen, length, run.generator("heldout"))[: config.heldout_rows]
        rows = training_rows(examples, config, length, run.generator("order"))
        results = train(run, config, model, tokenizer, rows, held, length)
        save_tuned(out, model.eval(), tokenizer, base, config)
        run.finish(
            results
            | {"conversations": len(examples), "turns_dropped": dropped, "steps": len(rows) // config.batch}
            | {"markers_renewed": len(renewed)}
        )


def train(
    run: Run,
    config: SFTConfig,
    model: GPT,
    tokenizer: Tokenizer,
    rows: list[list[Example]],
    heldout: list[list[Example]],
    length: int,
) -> dict[str, float]:
    """The loop: next rows, loss on the assistant's tokens, gradient, step. Returns the last held-out loss."""
    steps = len(rows) // config.batch
    optimizer = scheduled_adamw(trainable(model), config, steps)
    state = run.restore()
    results: dict[str, float] = state["results"] if state else {}
    for step in training_steps(run, model, optimizer.optimizers, steps, state, {"results": results}):
        minibatch = rows[step * config.batch : (step + 1) * config.batch]
        loss = supervised_loss(model, pack(minibatch, length, tokenizer.pad_id))
        lr, norm = optimizer.step(loss, step)
        rate = (step + 1) * config.batch * length / run.seconds
        evaluated = {}
        if heldout and ((step + 1) % config.evaluate_every == 0 or step + 1 == steps):
            evaluated = {"heldout_loss": heldout_loss(model, tokenizer, heldout, length)}
            results.update(evaluated)
        run.log(step + 1, loss=loss.item(), lr=lr, grad_norm=norm, tokens_per_second=rate, **evaluated)
        run.progress.update((step + 1) / steps, loss=loss.item(), tokens=f"{rate:,.0f}/s")
    return results


def supervised_loss(model: GPT, batch: Packed, total: float | None = None) -> torch.Tensor:
    """Mean of -log p over the batch's supervised tokens, each predicted from the token before it."""
    device = model.embedding.weight.device
    hidden = model.trunk(batch.ids.to(device), batch.positions.to(device), batch.mask().to(device))
    rows, columns = batch.supervised.to(device).nonzero(as_tuple=True)
    return next_token_loss(hidden[rows, columns - 1], model.head_weight, batch.ids.to(device)[rows, columns], total)


@torch.no_grad()
def heldout_loss(model: GPT, tokenizer: Tokenizer, rows: list[list[Example]], length: int) -> float:
    """Token mean over held-out rows, without dropout."""
    nats, count, training = 0.0, 0, model.training
    model.eval()
    for i in range(0, len(rows), 16):
        batch = pack(rows[i : i + 16], length, tokenizer.pad_id)
        nats += float(supervised_loss(model, batch, total=1.0))
        count += int(batch.supervised.sum())
    model.train(training)
    return nats / max(1, count)


def read_examples(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    config: SFTConfig,
    length: int,
    needed: int,
    generator: torch.Generator,
) -> tuple[list[Example], int]:
    """Windows of demonstrations in random order, encoded, until there are `needed` tokens or no more demonstrations.

    Also returns how many turns were dropped because they alone exceed the context.
    """
    examples: list[Example] = []
    dropped = tokens = 0
    demonstrations = read_demonstrations(paths)
    for i in torch.randperm(len(demonstrations), generator=generator).tolist():
        if tokens >= needed:
            break
        demonstration = demonstrations[i]
        pieces, lost = windows(demonstration.messages, lambda messages: encode_chat(tokenizer, messages), length)
        dropped += lost
        for piece in pieces:
            encoded = encode_chat(tokenizer, piece)
            examples.append(Example(encoded.ids, answers_of(encoded.supervised, config.min_answer, config.max_answer)))
            tokens += len(encoded.ids)
    return examples, dropped


def answers_of(supervised: list[bool], least: int, most: int) -> list[bool]:
    """Supervision without the runs of fewer than `least` or more than `most` tokens; a `most` of 0 is no limit."""
    kept: list[bool] = []
    for learn, run in groupby(supervised):
        size = len(list(run))
        kept += [learn and size >= least and (most == 0 or size <= most)] * size
    return kept


def packed_rows(examples: list[Example], length: int, generator: torch.Generator) -> list[list[Example]]:
    """One epoch: the examples in random order, packed chunk by chunk, the rows of each chunk in random order."""
    rows: list[list[Example]] = []
    order = torch.randperm(len(examples), generator=generator).tolist()
    for at in range(0, len(order), CHUNK):
        chunk = [examples[i] for i in order[at : at + CHUNK]]
        packed = pack_rows([len(e.ids) for e in chunk], length)
        rows += [[chunk[i] for i in packed[r]] for r in torch.randperm(len(packed), generator=generator).tolist()]
    return rows


def training_rows(
    examples: list[Example], config: SFTConfig, length: int, generator: torch.Generator
) -> list[list[Example]]:
    """As many epochs as the budget of tokens asks for, cut to whole batches."""
    wanted = max(1, config.tokens // length // config.batch) * config.batch
    rows: list[list[Example]] = []
    while len(rows) < wanted:
        rows += packed_rows(examples, length, generator)
    return rows[:wanted]
