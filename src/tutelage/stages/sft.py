"""Supervised fine-tuning on demonstrations: step 1 of InstructGPT (Ouyang et al. 2022, section 3.5).

    demonstrations -> windows that fit the context -> packed rows -> L = -mean log p(token), assistant tokens only

The loss covers each assistant turn and its end-of-turn token. The paper does not say whether its loss also covered the
prompts; ours does not. Conversations share a packed row but cannot attend to each other (`data/packing.py`). The output
head runs on supervised tokens only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from tutelage.data.demonstrations import windows
from tutelage.data.packing import Example, Packed, pack, pack_rows
from tutelage.data.prompts import row_length
from tutelage.data.rare_words import WordPieces, common_turns
from tutelage.data.records import read_demonstrations
from tutelage.errors import InputError
from tutelage.learning.head import next_token_loss
from tutelage.learning.optimizer import OptimizerConfig, scheduled_adamw
from tutelage.model.gpt import GPT
from tutelage.model.parameters import trainable
from tutelage.model.vocabulary import redraw_untrained_rows
from tutelage.options import Advanced
from tutelage.runs.adapter import AdapterConfig, adapt, save_tuned
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, Figure, command, counted, short_training, training_loss
from tutelage.runs.folder import load_policy
from tutelage.runs.log import read_metrics
from tutelage.runs.run import Run
from tutelage.runs.steps import training_steps
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

CHUNK = 512  # windows packed together: enough to fill the rows, few enough to keep their order random


@dataclass(frozen=True, kw_only=True)
class SFTConfig(OptimizerConfig, AdapterConfig):
    """One fine-tuning run on demonstrations. The defaults suit a small model on a laptop."""

    tokens: int = 500_000
    """Tokens of packed rows to train on. More than the demonstrations hold means further epochs."""
    batch: int = 8
    """Packed rows per optimizer step."""
    lr: float = 2e-3
    """Peak learning rate of AdamW, for a few million parameters. InstructGPT 1.3B: 9.65e-6 (appendix C.1)."""
    warmup: Advanced[float] = 0.03
    """Share of the steps over which the learning rate rises; the newly initialised chat markers need a warm-up."""
    evaluate_every: Advanced[int] = 25
    """Steps between two held-out evaluations."""
    min_answer: int = 0
    """Train only on assistant turns of at least this many tokens, end of turn included; shorter ones are context."""
    max_answer: int = 0
    """Train only on assistant turns of at most this many tokens; 0 is no limit. Long turns teach the model not to stop,
    which costs it where responses are limited in length."""
    max_pieces: Advanced[int] = 0
    """Train only on assistant turns without a word of more tokens than this; 0 is no limit. Names and typos take many
    tokens, and a small model that imitates them makes words up."""
    heldout_rows: Advanced[int] = 32
    """Packed rows of held-out demonstrations per evaluation."""
    row: int = 0
    """Tokens of a packed row; 0 is the model's context length, at most 512."""


def sft(
    base: Path,
    demos: tuple[Path, ...],
    out: Path,
    heldout: tuple[Path, ...] = (),
    config: SFTConfig = SFTConfig(),
) -> None:
    """Fine-tune a pretrained GPT on demonstrations.

    base: Model to start from: a run, a Hugging Face folder, a GGUF file, the name smollm2, or a hub id.
    demos: JSONL files with demonstrations to train on.
    out: Run directory to write.
    heldout: JSONL files with held-out demonstrations, used only to measure the model.

    Example: tutelage sft --base runs/base --demos data/demonstrations.train.jsonl --out runs/sft
    """
    base = find_base(base)
    with Run(out, stage="sft", config=config, inputs={"base": base, "demos": demos, "heldout": heldout}) as run:
        if run.finished:
            return
        model, tokenizer = load_policy(base, run.device, frozen=config.adapted)
        # Adapters do not train the embedding, so a freshly initialised marker would stay untrained.
        markers = [] if config.adapted else list(tokenizer.special.values())
        renewed = redraw_untrained_rows(model, markers, run.generator("markers"))
        model = adapt(model, config, run.generator("adapter")).train()
        length = row_length(config.row, model.config.context, "--row")
        examples, dropped = read_examples(demos, tokenizer, config, length, config.tokens, run.generator("demos"))
        check_examples(examples, config, length)
        enough = config.heldout_rows * length
        heldout_examples, _ = read_examples(heldout, tokenizer, config, length, enough, run.generator("heldout"))
        heldout_rows = packed_rows(heldout_examples, length, run.generator("heldout"))[: config.heldout_rows]
        rows = training_rows(examples, config, length, run.generator("order"))
        results, start = train(run, config, model, tokenizer, rows, heldout_rows, length)
        save_tuned(out, model.eval(), tokenizer, base, config)
        steps = len(rows) // config.batch
        results |= {"conversations": len(examples), "turns_dropped": dropped, "steps": steps}
        run.finish(results | {"markers_renewed": len(renewed)}, ending(run, results, start))


def check_examples(examples: list[Example], config: SFTConfig, length: int) -> None:
    """Raises InputError if there is nothing to train on."""
    if not examples:
        raise InputError(f"sft: no demonstration fits the context of {length} tokens; shorten them")
    if not any(supervised for example in examples for supervised in example.supervised):
        raise InputError(
            f"sft: no assistant turn has {config.min_answer} to {config.max_answer or 'any number of'} tokens"
            + (f" and no word of more than {config.max_pieces} tokens" if config.max_pieces else "")
            + "; change --min-answer or --max-answer"
            + (" or --max-pieces" if config.max_pieces else "")
        )


def ending(run: Run, results: dict[str, float], start: float | None) -> Ending:
    """start: the held-out loss before the first step."""
    loss = Figure("held-out loss", results.get("heldout_loss"), start=start, better="lower")
    if loss.value is None:
        loss = training_loss(read_metrics(run.metrics.path))
    return Ending(
        f"fine-tuned on {results['conversations']:,} conversations in {counted(results['steps'], 'step')}",
        [loss],
        short_training(int(results["steps"]), "give more demonstrations, a larger --tokens or a smaller --batch"),
        [command("chat", run.out), command("rank", "--policy", run.out, "...")],
    )


def train(
    run: Run,
    config: SFTConfig,
    model: GPT,
    tokenizer: Tokenizer,
    rows: list[list[Example]],
    heldout: list[list[Example]],
    length: int,
) -> tuple[dict[str, float], float | None]:
    """The loop: next rows, loss on the assistant's tokens, gradient, step.

    Returns the last held-out loss and the one before the first step; none without held-out rows.
    """
    steps = len(rows) // config.batch
    optimizer = scheduled_adamw(trainable(model), config, steps)
    state = run.restore()
    results: dict[str, float] = state["results"] if state else {}
    start = state.get("start") if state else heldout_loss(model, tokenizer, heldout, length) if heldout else None
    extra = {"results": results, "start": start}
    for step in training_steps(run, model, optimizer.optimizers, steps, state, extra):
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
    return results, start


def supervised_loss(model: GPT, batch: Packed, total: float | None = None) -> torch.Tensor:
    """Mean of -log p over the batch's supervised tokens, each predicted from the token before it.

    total: divide the sum by this instead of the number of supervised tokens.
    """
    device = model.embedding.weight.device
    hidden = model.trunk(batch.ids.to(device), batch.positions.to(device), batch.mask().to(device))
    rows, columns = batch.supervised.to(device).nonzero(as_tuple=True)
    return next_token_loss(hidden[rows, columns - 1], model.head_weight, batch.ids.to(device)[rows, columns], total)


@torch.no_grad()
def heldout_loss(model: GPT, tokenizer: Tokenizer, rows: list[list[Example]], length: int) -> float:
    """Mean of -log p in nats over the supervised tokens of held-out rows, without dropout."""
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
    """Encode demonstrations in random order, in windows of at most `length` tokens, until there are `needed` tokens.

    Also returns how many turns were dropped because they alone are longer than `length`.
    """
    examples: list[Example] = []
    dropped = tokens = 0
    pieces = WordPieces(tokenizer)
    demonstrations = read_demonstrations(paths)
    for i in torch.randperm(len(demonstrations), generator=generator).tolist():
        if tokens >= needed:
            break
        demonstration = demonstrations[i]
        fitting, lost = windows(demonstration.messages, lambda messages: encode_chat(tokenizer, messages), length)
        dropped += lost
        for messages in fitting:
            encoded = encode_chat(tokenizer, messages)
            supervised = turns_within(encoded.supervised, config.min_answer, config.max_answer)
            if config.max_pieces:
                supervised = common_turns(encoded.ids, supervised, pieces, config.max_pieces)
            examples.append(Example(encoded.ids, supervised))
            tokens += len(encoded.ids)
    return examples, dropped


def turns_within(supervised: list[bool], least: int, most: int) -> list[bool]:
    """The mask without the turns of fewer than `least` or more than `most` tokens; a `most` of 0 is no limit."""
    mask: list[bool] = []
    for learn, turn in groupby(supervised):
        size = len(list(turn))
        mask += [learn and size >= least and (most == 0 or size <= most)] * size
    return mask


def packed_rows(examples: list[Example], length: int, generator: torch.Generator) -> list[list[Example]]:
    """One epoch: shuffle the examples, pack them chunk by chunk, and shuffle the rows of each chunk."""
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
    """The packed rows of as many epochs as `config.tokens` takes, cut to whole batches."""
    wanted = max(1, config.tokens // length // config.batch) * config.batch
    rows: list[list[Example]] = []
    while len(rows) < wanted:
        rows += packed_rows(examples, length, generator)
    return rows[:wanted]
