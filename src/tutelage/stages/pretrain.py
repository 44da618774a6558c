"""Pretraining on plain documents: self-supervised next-token prediction.

    corpus -> one token stream -> windows in random order -> L = -mean log p(u_t | u_<t)

The objective is GPT's (Radford et al. 2018, eq. 1). Windows are packed as for GPT-3 (Brown et al. 2020, section 2.2):
documents follow each other with a separator and without special masking. The schedule is that of its appendix B:
linear warm-up, then a cosine. Ours: Muon (Jordan et al. 2024) for the hidden matrices, which reaches the same loss in
about half the tokens; `--optimizer adamw` is the recipe of 2020.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

from tutelage.data.packing import document_opening, encode_at_least, encode_documents, stream, window, window_count
from tutelage.data.records import read_documents
from tutelage.errors import InputError
from tutelage.evals.perplexity import bits_per_byte, check_windows
from tutelage.learning.head import next_token_loss
from tutelage.learning.optim import LearningRate, make_optimizers
from tutelage.learning.optimizer import OptimizerConfig, ScheduledOptimizer, WeightDecay
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.parameters import parameter_count
from tutelage.model.presets import ROWS, named_shape
from tutelage.options import Advanced, Count, Range, Share, Size
from tutelage.runs.ending import Ending, Figure, command, counted, short_training, training_loss
from tutelage.runs.folder import save_policy
from tutelage.runs.identity import Inputs
from tutelage.runs.log import read_metrics
from tutelage.runs.machine import memory_of
from tutelage.runs.run import Run, RunConfig
from tutelage.runs.steps import training_steps
from tutelage.text.tokenizer import Tokenizer

TRAINED_BYTES = 12  # of a parameter with Muon: weight, gradient and momentum in fp32
MOST_WINDOWS = 200_000_000  # their order takes 1.6 GB; GPT-3 saw 146 million
SHAPE = ("width", "layers", "heads", "kv_heads", "head_width", "hidden", "context")  # settings that shape the model


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(OptimizerConfig, RunConfig):
    """One pretraining run: the model's shape and the token budget. The defaults suit a laptop without a GPU."""

    size: str = ""
    """A published shape, gpt1 to gpt3-175b (`model/presets.py`). It replaces all of the shape's numbers below except
    the context length."""
    width: Size = 256
    """Channels of the residual stream."""
    layers: Annotated[int, Range(least=1, most=10_000)] = 4
    """Transformer blocks."""
    heads: Size = 4
    """Query heads."""
    kv_heads: Advanced[Size] = 2
    """Key/value heads, shared by the query heads."""
    head_width: Advanced[Size] = 64
    """Channels of a head."""
    hidden: Size = 768
    """Channels inside the gated MLP, usually 3 times the width."""
    context: Size = 256
    """Context length in tokens, and the length of a training window."""
    tokens: Count = 1_000_000
    """Tokens to train on. More than the corpus holds means further epochs, each in a new order."""
    batch: Size = 8
    """Windows per optimizer step."""
    optimizer: Advanced[Literal["muon", "adamw"]] = "muon"
    """muon: Muon for the hidden matrices and AdamW for the rest. adamw: AdamW for all weights."""
    muon_lr: LearningRate = 0.01
    """Peak learning rate of Muon (Jordan et al. 2024: 0.02, for a larger model)."""
    lr: Annotated[float, Range(least=0, most=1)] = 0.0
    """Peak learning rate of AdamW. 0 means 0.02 with Muon, where AdamW mostly trains the embedding, and 3e-3 alone
    (smallest GPT-3: 6e-4)."""
    weight_decay: Advanced[WeightDecay] = 0.1
    """Decoupled weight decay of the matrices (GPT-3, appendix B)."""
    warmup: Advanced[Share] = 0.02
    """Share of the steps over which the learning rate rises linearly."""
    evaluate_every: Advanced[Count] = 50
    """Steps between two held-out evaluations."""
    heldout_windows: Advanced[Count] = 64
    """Windows of held-out text per evaluation."""

    @property
    def adamw_lr(self) -> float:
        """AdamW's peak learning rate, with the default that 0 stands for."""
        return self.lr or (0.02 if self.optimizer == "muon" else 3e-3)

    def shape(self, vocab_size: int) -> GPTConfig:
        """The model configuration these numbers describe. Raises InputError if they disagree."""
        if self.size:
            if self.size not in ROWS:
                raise InputError(f"--size {self.size}: not a published shape; choose one of {', '.join(ROWS)}")
            return named_shape(self.size, vocab_size, self.context)
        try:
            shape = {name: getattr(self, name) for name in SHAPE}
            return GPTConfig(vocab_size=vocab_size, qk_norm=True, **shape)
        except ValueError as error:
            raise InputError(f"pretrain: {error}; change --heads, --kv-heads, --head-width or --width") from None


def pretrain(
    tokenizer: Path,
    corpus: tuple[Path, ...],
    out: Path,
    heldout: tuple[Path, ...] = (),
    config: PretrainConfig = PretrainConfig(),
) -> None:
    """Pretrain a GPT from scratch on plain documents.

    tokenizer: Tokenizer run.
    corpus: JSONL files with documents to train on.
    out: Run directory to write.
    heldout: JSONL files with held-out documents, used only to measure the model.

    Example: tutelage pretrain --tokenizer runs/tokenizer --corpus data/corpus.train.jsonl --out runs/base
    """
    inputs: Inputs = {"tokenizer": tokenizer, "corpus": corpus, "heldout": heldout}
    with Run(out, stage="pretrain", config=config, inputs=inputs) as run:
        if run.finished:
            return
        bpe = Tokenizer.load(tokenizer)
        texts = [document.plain_text() for document in read_documents(corpus)]
        ids = encode_at_least(bpe, texts, config.tokens + config.context, run.generator("documents"))
        heldout_ids = token_stream(bpe, heldout)
        if heldout:
            check_windows(heldout_ids, config.context)
        order = window_order(ids, config, run.generator("order"))
        shape = config.shape(bpe.vocab_size)
        check_memory(shape, run.device.torch_device)
        model = GPT(shape, run.device.compute_dtype).initialise(run.generator("weights"))
        model.to(run.device.torch_device)
        steps = len(order) // config.batch
        results, start = train(run, config, model, ids, order, heldout_ids, bpe, steps)
        save_policy(out, model, bpe)
        results |= {"parameters": parameter_count(model), "corpus_tokens": len(ids), "steps": steps}
        run.finish(results, ending(run, config, results, start))


def ending(run: Run, config: PretrainConfig, results: dict[str, float], start: float | None) -> Ending:
    """start: bits per byte of held-out text before the first step."""
    steps, bits = int(results["steps"]), results.get("heldout_bits_per_byte")
    figure = Figure("held-out bits per byte", bits, start=start, better="lower")
    if bits is None:
        figure = training_loss(read_metrics(run.metrics.path))
    tokens = steps * config.batch * config.context
    return Ending(
        f"pretrained {results['parameters']:,} parameters on {tokens:,} tokens in {counted(steps, 'step')}",
        [figure],
        short_training(steps, "give a larger --tokens or a smaller --batch"),
        [command("sft", "--base", run.out, "--demos", "DEMONSTRATIONS.jsonl", "--out", "...")],
    )


def train(
    run: Run,
    config: PretrainConfig,
    model: GPT,
    ids: np.ndarray,
    order: np.ndarray,
    heldout: np.ndarray,
    tokenizer: Tokenizer,
    steps: int,
) -> tuple[dict[str, float], float | None]:
    """The loop: next windows, loss, gradient, step.

    Returns the last held-out figure and the one before the first step; none without held-out text.
    """
    optimizer = make_optimizer(model, config, steps)
    state = run.restore()
    results: dict[str, float] = state["results"] if state else {}
    start = state.get("start") if state else heldout_bits(model, heldout, tokenizer, config) if len(heldout) else None
    extra = {"results": results, "start": start}
    for step in training_steps(run, model, optimizer.optimizers, steps, state, extra):
        rows = order[step * config.batch : (step + 1) * config.batch]
        batch = window(ids, rows, config.context).to(run.device.torch_device)
        loss = next_token_loss(model.trunk(batch[:, :-1]).flatten(0, 1), model.head_weight, batch[:, 1:].flatten())
        lr, norm = optimizer.step(loss, step)
        tokens = (step + 1) * config.batch * config.context
        rate = tokens / run.seconds
        evaluated = {}
        if len(heldout) and ((step + 1) % config.evaluate_every == 0 or step + 1 == steps):
            evaluated = {"heldout_bits_per_byte": heldout_bits(model, heldout, tokenizer, config)}
            results.update(evaluated)
        run.log(step + 1, loss=loss.item(), lr=lr, grad_norm=norm, tokens=tokens, tokens_per_second=rate, **evaluated)
        run.progress.update((step + 1) / steps, loss=loss.item(), tokens=f"{rate:,.0f}/s")
    return results, start


def make_optimizer(model: GPT, config: PretrainConfig, steps: int) -> ScheduledOptimizer:
    """Muon and AdamW, or AdamW alone, as the config says."""
    settings = {"muon_lr": config.muon_lr, "lr": config.adamw_lr, "weight_decay": config.weight_decay}
    optimizers = make_optimizers(model, config.optimizer, dtype=model.compute_dtype, **settings)
    return ScheduledOptimizer(optimizers, list(model.parameters()), config, steps)


def heldout_bits(model: GPT, heldout: np.ndarray, tokenizer: Tokenizer, config: PretrainConfig) -> float:
    sizes, opening = tokenizer.token_byte_counts(), document_opening(tokenizer)
    return bits_per_byte(model, heldout, sizes, config.heldout_windows, config.context, opening)


def token_stream(tokenizer: Tokenizer, paths: Sequence[Path]) -> np.ndarray:
    """The documents of all files as one stream of token ids, each followed by the end-of-text token."""
    texts = [document.plain_text() for document in read_documents(paths)]
    return stream(encode_documents(tokenizer, texts), tokenizer.end_of_text_id)


def check_memory(shape: GPTConfig, device: torch.device) -> None:
    """Raises InputError for a model whose weights, gradients and moments alone take more memory than there is."""
    parameters, there = size_of(shape), memory_of(device)
    if (needed := TRAINED_BYTES * parameters) > there:
        raise InputError(
            f"pretrain: to train {parameters:,} parameters takes {needed / 2**30:,.0f} GiB or more, and there are "
            f"{there / 2**30:,.0f} GiB; give a smaller --width, --hidden or --layers"
        )


def size_of(shape: GPTConfig) -> int:
    """Number of parameters, counted on models of one and of two layers without memory."""
    short = shape.context if shape.learned_positions else 1
    try:
        with torch.device("meta"):
            one, two = (parameter_count(GPT(replace(shape, layers=layers, context=short))) for layers in (1, 2))
    except RuntimeError as error:  # one matrix has more bytes than 64 bits can count
        raise InputError(
            f"pretrain: this shape is not possible ({error}); give a smaller --width or --hidden"
        ) from None
    return one + (shape.layers - 1) * (two - one)


def window_order(ids: np.ndarray, config: PretrainConfig, generator: torch.Generator) -> np.ndarray:
    """The order of the training windows, a new permutation each epoch. Raises InputError if they fill no batch."""
    available, wanted = window_count(ids, config.context), config.tokens // config.context
    wanted -= wanted % config.batch
    if available < config.batch or wanted < config.batch:
        raise InputError(
            f"pretrain: the corpus holds {available} windows of {config.context} tokens and the budget {wanted}, one "
            f"batch needs {config.batch}; give more text, more --tokens or a smaller --batch"
        )
    if wanted > MOST_WINDOWS:
        raise InputError(
            f"--tokens {config.tokens}: fill {wanted:,} windows of {config.context} tokens, and at most "
            f"{MOST_WINDOWS:,} are planned; give fewer"
        )
    epochs = math.ceil(wanted / available)
    return torch.cat([torch.randperm(available, generator=generator) for _ in range(epochs)])[:wanted].numpy()
