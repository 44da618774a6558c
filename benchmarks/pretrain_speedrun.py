"""Measure how much sooner our pretraining recipe reaches the final quality of a plain training loop.

    python benchmarks/pretrain_speedrun.py --data runs/demo/data --tokenizer runs/demo/tokenizer [--tokens 500000]

The baseline is a GPT-2 with the same number of parameters (within 2 %) in fp32. It uses PyTorch's AdamW (.9/.95, decay
.1), fused attention and cross entropy, the same warm-up and cosine, and the best of four learning rates. Ours uses the
pretrain stage's defaults. Both train on the same windows in the same order and are measured on the same held-out bytes.
In the timed run of each seed they alternate step by step, so that a slower machine slows both.

The figure is the median over the seeds of (the baseline's total seconds) / (our seconds to the baseline's final bits
per byte). It is printed and written: `--out NAME` writes NAME.json and NAME.md (record.py).
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from record import Record

from tutelage.data.packing import window
from tutelage.evals.perplexity import bits_per_byte
from tutelage.learning.head import next_token_loss
from tutelage.learning.optim import clipped_step, make_optimizers, set_learning_rate, warmup_cosine
from tutelage.model.config import GPTConfig
from tutelage.model.gpt import GPT
from tutelage.model.parameters import parameter_count
from tutelage.runs.device import choose_device
from tutelage.runs.run import seed_for
from tutelage.stages.pretrain import PretrainConfig, token_stream, window_order
from tutelage.text.tokenizer import Tokenizer

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
EVALUATIONS = 40  # of our model on held-out text per run; more of them make the time to the target more exact


class Contestant:
    """One model in training. Only the time of its own steps is counted."""

    def __init__(self, model: GPT, optimizers: list[torch.optim.Optimizer], plain: bool, config: PretrainConfig):
        self.model, self.optimizers, self.plain, self.config, self.seconds = model, optimizers, plain, config, 0.0

    def step(self, batch: torch.Tensor, step: int, steps: int) -> None:
        begun = time.perf_counter()
        warmup = max(1, round(self.config.warmup * steps))
        factor = warmup_cosine(step, steps=steps, warmup=warmup, floor=self.config.floor)
        for optimizer in self.optimizers:
            set_learning_rate(optimizer, factor)
        inputs, targets = batch[:, :-1], batch[:, 1:].flatten()
        if self.plain:
            loss = F.cross_entropy(self.model(inputs).flatten(0, 1), targets)
        else:
            loss = next_token_loss(self.model.trunk(inputs).flatten(0, 1), self.model.head_weight, targets)
        loss.backward()
        clipped_step(self.optimizers, self.model.parameters(), self.config.clip)
        self.seconds += time.perf_counter() - begun


def gpt2(config: PretrainConfig, vocab_size: int, lr: float, seed: int) -> Contestant:
    """The baseline: pre-norm, learned positions, GELU, biases, tied head."""
    shape = GPTConfig(
        vocab_size=vocab_size, width=config.width, layers=config.layers, heads=config.heads, kv_heads=config.heads,
        head_width=config.width // config.heads, hidden=4 * config.width, context=config.context, norm="layer",
        norm_eps=1e-5, learned_positions=True, mlp="gelu", biases=True,
    )  # fmt: skip
    model = GPT(shape).initialise(torch.Generator().manual_seed(seed))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return Contestant(model, [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))], True, config)


def ours(config: PretrainConfig, vocab_size: int, seed: int) -> Contestant:
    device = choose_device(config.device, config.dtype)
    model = GPT(config.shape(vocab_size), device.compute_dtype).initialise(torch.Generator().manual_seed(seed))
    optimizers = make_optimizers(
        model, config.optimizer, muon_lr=config.muon_lr, lr=config.adamw_lr, weight_decay=config.weight_decay,
        dtype=device.compute_dtype,
    )  # fmt: skip
    return Contestant(model, optimizers, False, config)


def race(contestants: list[Contestant], ids: np.ndarray, order: np.ndarray, heldout: np.ndarray, sizes: list[int]):
    """Train all contestants on the same batches, in turns. Returns [(seconds, bits per byte)] for each."""
    config = contestants[0].config
    steps = len(order) // config.batch
    curves: list[list[tuple[float, float]]] = [[] for _ in contestants]
    for step in range(steps):
        batch = window(ids, order[step * config.batch : (step + 1) * config.batch], config.context)
        for contestant in contestants:
            contestant.step(batch, step, steps)
        if (step + 1) % max(1, steps // EVALUATIONS) == 0 or step + 1 == steps:
            for contestant, curve in zip(contestants, curves, strict=True):
                if not contestant.plain or step + 1 == steps:
                    bits = bits_per_byte(contestant.model, heldout, sizes, config.heldout_windows, config.context)
                    curve.append((contestant.seconds, bits))
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("runs/demo/data"), help="what `tutelage collect` wrote")
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/demo/tokenizer"), help="a tokenizer's run")
    parser.add_argument("--tokens", type=int, default=500_000, help="training tokens per run")
    parser.add_argument("--seeds", type=int, default=3, help="timed runs")
    out = Path("runs/benchmarks/pretrain_speedrun")
    parser.add_argument("--out", type=Path, default=out, help="NAME of the files to write, without an extension")
    given = parser.parse_args()
    if not given.tokenizer.is_dir():
        parser.exit(2, f"{given.tokenizer}: no such folder; run `make demo` first, or give --tokenizer and --data\n")
    record = Record(given.out, given)
    tokenizer = Tokenizer.load(given.tokenizer)
    ids = token_stream(tokenizer, [given.data / "corpus.train.jsonl"])
    heldout, sizes = token_stream(tokenizer, [given.data / "corpus.valid.jsonl"]), tokenizer.token_byte_counts()
    config = PretrainConfig(tokens=given.tokens)

    def order(seed: int) -> np.ndarray:
        return window_order(ids, config, torch.Generator().manual_seed(seed_for(seed, "speedrun")))

    rows = []
    best: dict[float, float] = {}
    for rate in RATES:
        (curve,) = race([gpt2(config, tokenizer.vocab_size, rate, 0)], ids, order(0), heldout, sizes)
        best[rate] = curve[-1][1]
        print(f"baseline at {rate:g}: {curve[-1][1]:.4f} bits per byte", flush=True)
    rate = min(best, key=lambda r: best[r])
    for seed in range(given.seeds):
        pair = [
            gpt2(config, tokenizer.vocab_size, rate, seed),
            ours(replace(config, seed=seed), tokenizer.vocab_size, seed),
        ]
        sizes_apart = parameter_count(pair[1].model) / parameter_count(pair[0].model) - 1
        assert abs(sizes_apart) <= 0.02, sizes_apart  # the comparison needs equal sizes
        plain, quick = race(pair, ids, order(seed), heldout, sizes)
        seconds, target = plain[-1]
        reached = next((s for s, bits in quick if bits <= target), None)
        row = {"seed": seed, "baseline_seconds": seconds, "baseline_bits_per_byte": target,
               "our_seconds_to_it": reached, "our_seconds": quick[-1][0], "our_bits_per_byte": quick[-1][1],
               "ratio": seconds / reached if reached else 0.0, "parameters_apart": sizes_apart}  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    median = statistics.median(row["ratio"] for row in rows)
    say_table(record, rows, f"median ratio {median:.2f}, {given.tokens} tokens")
    record.leave({"median_ratio": median, "baseline_rates": best, "seeds": rows})


def say_table(record: Record, rows: list[dict], median: str) -> None:
    record.say("| seed | baseline s | baseline bits/byte | ours to that, s | our final bits/byte | ratio |")
    record.say("|---|---|---|---|---|---|")
    for r in rows:
        reached = f"{r['our_seconds_to_it']:.1f}" if r["our_seconds_to_it"] else "never"
        record.say(f"| {r['seed']} | {r['baseline_seconds']:.1f} | {r['baseline_bits_per_byte']:.4f} | {reached} "
                   f"| {r['our_bits_per_byte']:.4f} | {r['ratio']:.2f} |")  # fmt: skip
    record.say(f"\n{median}")


if __name__ == "__main__":
    main()
