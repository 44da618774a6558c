"""Documents to a base model: self-supervised next-token prediction.

    corpus -> one token stream -> windows in random order -> L = -mean log p(u_t | u_<t)

GPT (Radford et al. 2018, eq. 1), windows packed as for GPT-3 (Brown et al. 2020, section 2.2): several documents in
one, a separator between, no special masking. Warm-up and cosine as in its appendix B. Ours: Muon (Jordan et al. 2024)
for the hidden matrices, about half the tokens to the same loss; `--optimizer adamw` is the recipe of 2020.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tutelage.data.packing import encode_enough, stream, window, window_count
from tutelage.data.records import read_documents
from tutelage.errors import InputError
from tutelage.evals.perplexity import bits_per_byte, check_windows
from tutelage.learning.head import next_token_loss
from tutelage.learning.optim import make_optimizers
from tutelage.learning.optimizer import OptimizerConfig, ScheduledOptimizer
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.parameters import parameter_count
from tutelage.model.presets import ROWS, named_shape
from tutelage.runs.folder import save_policy
from tutelage.runs.identity import Inputs
from tutelage.runs.run import Run, RunConfig
from tutelage.runs.steps import training_steps
from tutelage.text.tokenizer import Tokenizer

SHAPE = ("width", "layers", "heads", "kv_heads", "head_width", "hidden", "context")  # settings that shape the model


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(OptimizerConfig, RunConfig):
    """One pretraining run: the model's shape and the budget. Defaults suit a laptop without a GPU."""

    size: str = ""
    """A published shape, gpt1 to gpt3-175b (`model/presets.py`), instead of the seven numbers that follow; the context
    stays as given."""
    width: int = 256
    """Channels of the residual stream."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Query heads."""
    kv_heads: int = 2
    """Key/value heads, shared by the query heads."""
    head_width: int = 64
    """Channels of a head."""
    hidden: int = 768
    """Channels inside the gated MLP: 3 times the width."""
    context: int = 256
    """Longest sequence in tokens, and the length of a training window."""
    tokens: int = 1_000_000
    """Tokens to train on; more than the corpus holds means further epochs in new orders."""
    batch: int = 8
    """Windows per optimizer step."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the hidden matrices with AdamW for the rest, or AdamW alone."""
    muon_lr: float = 0.01
    """Peak rate of Muon; .02 in Jordan et al. 2024, for a larger model."""
    lr: float = 0.0
    """Peak rate of AdamW; 0 is .02 beside Muon, where it is mostly the embedding's, and 3e-3 alone (GPT-3's smallest:
    6e-4)."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices (GPT-3, appendix B)."""
    warmup: float = 0.02
    """Share of the steps in which the rate rises linearly."""
    evaluate_every: int = 50
    """Steps between two held-out evaluations."""
    heldout_windows: int = 64
    """Windows of held-out text per evaluation."""

    @property
    def adamw_lr(self) -> float:
        """The rate that `lr` stands for."""
        return self.lr or (0.02 if self.optimizer == "muon" else 3e-3)

    def shape(self, vocab_size: int) -> GPTConfig:
        """The decoder these numbers describe. Raises InputError where they disagree."""
        if self.size:
            if self.size not in ROWS:
                raise InputError(f"--size {self.size}: unknown; the published ones are {', '.join(ROWS)}")
            return named_shape(self.size, vocab_size, self.context)
        try:
            given = {name: getattr(self, name) for name in SHAPE}
            return GPTConfig(vocab_size=vocab_size, qk_norm=True, **given)
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

    Example: tutelage pretrain --tokenizer runs/tokenizer --corpus data/corpus.train.jsonl --out runs/base
    """
    inputs: Inputs = {"tokenizer": tokenizer, "corpus": corpus, "heldout": heldout}
    with Run(out, stage="pretrain", config=config, inputs=inputs) as run:
        if run.finished:
            return
        bpe = Tokenizer.load(tokenizer)
        texts = [document.plain_text() for document in read_documents(corpus)]
        ids = encode_enough(bpe, texts, config.tokens + config.context, run.generator("documents"))
        unseen = token_stream(bpe, heldout)
        if heldout:
            check_windows(unseen, config.context)
        order = window_order(ids, config, run.generator("order"))
        model = GPT(config.shape(bpe.vocab_size), run.device.compute_dtype).initialise(run.generator("weights"))
        model.to(run.device.torch_device)
        steps = len(order) // config.batch
        results = train(run, config, model, ids, order, unseen, bpe, steps)
        save_policy(out, model, bpe)
        run.finish(results | {"parameters": parameter_count(model), "corpus_tokens": len(ids), "steps": steps})


def train(
    run: Run,
    config: PretrainConfig,
    model: GPT,
    ids: np.ndarray,
    order: np.ndarray,
    heldout: np.ndarray,
    tokenizer: Tokenizer,
    steps: int,
) -> dict[str, float]:
    """The loop: next windows, loss, gradient, step. Returns the last held-out figure."""
    optimizer = make_optimizer(model, config, steps)
    state = run.restore()
    results: dict[str, float] = state["results"] if state else {}
    for step in training_steps(run, model, optimizer.optimizers, steps, state, {"results": results}):
        rows = order[step * config.batch : (step + 1) * config.batch]
        batch = window(ids, rows, config.context).to(run.device.torch_device)
        loss = next_token_loss(model.trunk(batch[:, :-1]).flatten(0, 1), model.head_weight, batch[:, 1:].flatten())
        lr, norm = optimizer.step(loss, step)
        tokens = (step + 1) * config.batch * config.context
        rate = tokens / run.seconds
        evaluated = {}
        if len(heldout) and ((step + 1) % config.evaluate_every == 0 or step + 1 == steps):
            evaluated = heldout_bits(model, heldout, tokenizer, config)
            results.update(evaluated)
        run.log(step + 1, loss=loss.item(), lr=lr, grad_norm=norm, tokens=tokens, tokens_per_second=rate, **evaluated)
        run.progress.update((step + 1) / steps, loss=loss.item(), tokens=f"{rate:,.0f}/s")
    return results


def make_optimizer(model: GPT, config: PretrainConfig, steps: int) -> ScheduledOptimizer:
    """Muon and AdamW, or AdamW alone, as the config says."""
    settings = {"muon_lr": config.muon_lr, "lr": config.adamw_lr, "weight_decay": config.weight_decay}
    optimizers = make_optimizers(model, config.optimizer, dtype=model.compute_dtype, **settings)
    return ScheduledOptimizer(optimizers, list(model.parameters()), config, steps)


def heldout_bits(model: GPT, heldout: np.ndarray, tokenizer: Tokenizer, config: PretrainConfig) -> dict[str, float]:
    bits = bits_per_byte(model, heldout, tokenizer.token_bytes(), config.heldout_windows, config.context)
    return {"heldout_bits_per_byte": bits}


def token_stream(tokenizer: Tokenizer, paths: Sequence[Path]) -> np.ndarray:
    """All documents of the files as one stream of ids."""
    texts = [document.plain_text() for document in read_documents(paths)]
    return stream(tokenizer.encode_batch(texts), tokenizer.end_of_text_id)


def window_order(ids: np.ndarray, config: PretrainConfig, generator: torch.Generator) -> np.ndarray:
    """Which window comes when: each epoch is a new permutation. Raises InputError if the corpus fills no batch."""
    available, wanted = window_count(ids, config.context), config.tokens // config.context
    wanted -= wanted % config.batch
    if available < config.batch or wanted < config.batch:
        raise InputError(
            f"pretrain: the corpus holds {available} windows of {config.context} tokens and the budget {wanted}, one "
            f"batch needs {config.batch}; give more text, more --tokens or a smaller --batch"
        )
    epochs = math.ceil(wanted / available)
    return torch.cat([torch.randperm(available, generator=generator) for _ in range(epochs)])[:wanted].numpy()
