"""Supervised fine-tuning on demonstrations: step 1 of InstructGPT (Ouyang et al. 2022, section 3.5).

    demonstrations -> windows that fit the context -> packed rows -> L = -mean log p(token), assistant tokens only

The loss covers each assistant turn and its end-of-turn token. The paper does not say whether its loss also covered the
prompts; ours does not. Conversations share a packed row but cannot attend to each other (`data/packing.py`). The output
head runs on supervised tokens only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated

import torch

from tutelage.data.demonstrations import windows
from tutelage.data.epochs import budget_warnings, default_epochs, packed_rows, rows_of_epochs, rows_of_tokens
from tutelage.data.packing import Example, Packed, pack
from tutelage.data.prompts import row_length
from tutelage.data.rare_words import WordPieces, common_turns
from tutelage.data.records import read_demonstrations
from tutelage.errors import InputError, located
from tutelage.learning.head import next_token_loss
from tutelage.learning.optim import LearningRate
from tutelage.learning.optimizer import OptimizerConfig, scheduled_adamw
from tutelage.model.gpt import GPT
from tutelage.model.parameters import trainable
from tutelage.model.vocabulary import redraw_untrained_rows
from tutelage.options import Advanced, Count, Natural, Range, Share, Size
from tutelage.runs.adapter import AdapterConfig, adapt, save_tuned
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, Figure, command, counted, short_training
from tutelage.runs.folder import load_policy
from tutelage.runs.run import Run
from tutelage.runs.steps import training_steps
from tutelage.text.chat import ChatIds, rewrites_turns, training_examples, training_size
from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SFTConfig(OptimizerConfig, AdapterConfig):
    """One fine-tuning run on demonstrations. The defaults suit a small model on a laptop."""

    epochs: Annotated[float | None, Range(above=0, most=10_000)] = None
    """Passes over the demonstrations, such as 3 or 0.5. By default as many as come nearest to 500,000 tokens, from 1
    to 16 (InstructGPT: 16)."""
    tokens: Advanced[Annotated[int | None, Range(least=1, most=10**12)]] = None
    """Tokens of packed rows to train on, instead of --epochs."""
    batch: Size = 8
    """Packed rows per optimizer step."""
    lr: LearningRate = 2e-3
    """Peak learning rate of AdamW, for a few million parameters. InstructGPT 1.3B: 9.65e-6 (appendix C.1)."""
    warmup: Advanced[Share] = 0.03
    """Share of the steps over which the learning rate rises; the newly initialised chat markers need a warm-up."""
    evaluate_every: Advanced[Count] = 25
    """Steps between two held-out evaluations."""
    min_answer: Natural = 0
    """Train only on assistant turns of at least this many tokens, end of turn included; shorter ones are context."""
    max_answer: Natural = 0
    """Train only on assistant turns of at most this many tokens; 0 is no limit. Long turns teach the model not to stop,
    which costs it where responses are limited in length."""
    max_pieces: Advanced[Natural] = 0
    """Train only on assistant turns without a word of more tokens than this; 0 is no limit. Names and typos take many
    tokens, and a small model that imitates them makes words up."""
    heldout_rows: Advanced[Natural] = 32
    """Packed rows of held-out demonstrations per evaluation."""
    row: Natural = 0
    """Tokens of a packed row; 0 is the model's context length, at most 512."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.tokens is not None:
            raise InputError(
                f"--epochs {self.epochs:g} --tokens {self.tokens}: both say how long to train; give one of them"
            )
        if 0 < self.max_answer < self.min_answer:
            raise InputError(
                f"--min-answer {self.min_answer} --max-answer {self.max_answer}: no turn is that long and that short; "
                "raise --max-answer"
            )


def sft(
    base: Path,
    demos: tuple[Path, ...],
    out: Path,
    heldout: tuple[Path, ...] = (),
    config: SFTConfig = SFTConfig(),
) -> None:
    """Fine-tune a pretrained GPT on demonstrations.

    base: Model to start from: a run, a Hugging Face folder, a GGUF file, the name smollm2, or a hub id.
    demos: Files with demonstrations to train on: JSONL, or one JSON array. Or a server's data folder or database URL.
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
        wanted = config.tokens or math.inf
        examples, dropped = read_examples(demos, tokenizer, config, length, wanted, run.generator("demos"))
        check_examples(examples, dropped, config, length)
        mask = "the last answer of each example" if rewrites_turns(tokenizer) else "every answer"
        if rewrites_turns(tokenizer):
            run.progress.say(
                f"{out}: the chat template rewrites earlier turns, so each answer is an example of its own"
            )
        enough = config.heldout_rows * length
        heldout_examples, _ = read_examples(heldout, tokenizer, config, length, enough, run.generator("heldout"))
        heldout_rows = packed_rows(heldout_examples, length, run.generator("heldout"))[: config.heldout_rows]
        rows, plan = plan_rows(run, config, examples, length)
        results = train(run, config, model, tokenizer, rows, heldout_rows, length)
        save_tuned(out, model.eval(), tokenizer, base, config)
        results |= plan | dropped
        said = ending(run, results, min(len(rows), config.heldout_rows))
        run.finish(results | {"markers_renewed": len(renewed), "supervised": mask}, said)


def plan_rows(
    run: Run, config: SFTConfig, examples: list[Example], length: int
) -> tuple[list[list[Example]], dict[str, float]]:
    """The packed rows to train on, and how many conversations, epochs and steps that is. Warns of odd numbers."""
    held, order = sum(len(example.ids) for example in examples), run.generator("order")
    if config.tokens:
        rows = rows_of_tokens(examples, config.tokens, config.batch, length, order)
    else:
        rows = rows_of_epochs(examples, config.epochs or default_epochs(held), length, order)
    epochs = round(sum(len(example.ids) for row in rows for example in row) / held, 2)
    steps = math.ceil(len(rows) / config.batch)
    for warning in budget_warnings(held, epochs, steps, chosen=bool(config.tokens or config.epochs)):
        run.progress.say(f"{run.out}: warning: {warning}")
    return rows, {"conversations": len(examples), "epochs": epochs, "steps": steps}


def check_examples(examples: list[Example], dropped: dict[str, int], config: SFTConfig, length: int) -> None:
    """Raises InputError if there is nothing to train on."""
    if not examples and dropped["conversations_unlearned"]:
        raise InputError(
            f"sft: no assistant turn has {config.min_answer} to {config.max_answer or 'any number of'} tokens"
            + (f" and no word of more than {config.max_pieces} tokens" if config.max_pieces else "")
            + "; change --min-answer or --max-answer"
            + (" or --max-pieces" if config.max_pieces else "")
        )
    if not examples:
        raise InputError(
            f"sft: no demonstration fits the context of {length} tokens; all {dropped['turns_dropped']:,} turns are in "
            "longer exchanges; shorten them"
        )


def ending(run: Run, results: dict[str, float], rows: int) -> Ending:
    """rows: packed rows of the training data on which base and tuned model were compared, if none was held out."""
    start, steps = results.get("base_loss"), results["steps"]
    loss = Figure("held-out loss", results.get("heldout_loss"), start=start, better="lower")
    if loss.value is None:
        note = "base and tuned; --heldout would show whether it generalises"
        name, tuned = f"loss on {counted(rows, 'row')} of the training data", results.get("training_loss")
        loss = Figure(name, tuned, start=start, better="lower", note=note)
    epochs = round(results["epochs"]) if results["epochs"] == round(results["epochs"]) else results["epochs"]
    unlearned, turns = results["conversations_unlearned"], results["turns_dropped"]
    apart = f" ({unlearned:,} others have no turn within --min-answer and --max-answer)" if unlearned else ""
    warnings = [f"left out {counted(turns, 'turn')} in exchanges too long for a row"] if turns else []
    return Ending(
        f"fine-tuned on {counted(results['conversations'], 'conversation')}{apart}, {counted(epochs, 'epoch')} in "
        f"{counted(steps, 'step')}",
        [loss],
        warnings + short_training(int(steps), "give more demonstrations, more --epochs or a smaller --batch"),
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
) -> dict[str, float]:
    """The loop: next rows, loss on the assistant's tokens, gradient, step.

    Returns the loss of the base and of the tuned model, both on held-out rows, or without any on training rows.
    """
    steps, measured = math.ceil(len(rows) / config.batch), heldout or rows[: config.heldout_rows]
    optimizer = scheduled_adamw(trainable(model), config, steps)
    state = run.restore()
    results: dict[str, float] = state["results"] if state else {}
    if measured and not state:
        results["base_loss"] = heldout_loss(model, tokenizer, measured, length)
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
    if measured and not heldout:
        results["training_loss"] = heldout_loss(model, tokenizer, measured, length)
    return results


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
    needed: float,
    generator: torch.Generator,
) -> tuple[list[Example], dict[str, int]]:
    """Encode demonstrations in random order, in windows of at most `length` tokens, until there are `needed` tokens.

    A window is one example, or one for each answer if the chat template rewrites earlier turns (`text/chat.py`).
    Examples without a token to learn are left out, so no batch is filled with them. Also returns how many there were,
    and how many turns were dropped because they alone are longer than `length`.
    """
    examples: list[Example] = []
    dropped = {"turns_dropped": 0, "conversations_unlearned": 0}
    tokens, pieces = 0, WordPieces(tokenizer)
    demonstrations = read_demonstrations(paths)
    for i in torch.randperm(len(demonstrations), generator=generator).tolist():
        if tokens >= needed:
            break
        messages = demonstrations[i].messages
        with located(demonstrations[i].where):
            fitting, lost = windows(messages, lambda messages: training_size(tokenizer, messages), length)
            encoded = [example for window in fitting for example in training_examples(tokenizer, window)]
        made = [Example(e.ids, supervised_turns(e, config, pieces)) for e in encoded]
        taught = [example for example in made if any(example.supervised)]
        dropped["turns_dropped"] += lost
        dropped["conversations_unlearned"] += len(made) - len(taught)
        tokens += sum(len(example.ids) for example in taught)
        examples += taught
    return examples, dropped


def supervised_turns(encoded: ChatIds, config: SFTConfig, pieces: WordPieces) -> list[bool]:
    """The mask of the assistant turns that `config` lets the model learn from."""
    supervised = turns_within(encoded.supervised, config.min_answer, config.max_answer)
    return common_turns(encoded.ids, supervised, pieces, config.max_pieces) if config.max_pieces else supervised


def turns_within(supervised: list[bool], least: int, most: int) -> list[bool]:
    """The mask without the turns of fewer than `least` or more than `most` tokens; a `most` of 0 is no limit."""
    mask: list[bool] = []
    for learn, turn in groupby(supervised):
        size = len(list(turn))
        mask += [learn and size >= least and (most == 0 or size <= most)] * size
    return mask
