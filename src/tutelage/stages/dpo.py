"""Preference training on rankings without a reward model: DPO (Rafailov et al. 2023) and its family.

    SFT model -> log pi and log pi_ref of whole responses -> margin h of each pair of a ranking -> a loss of h

The policy starts as the reference, and its log ratio to the reference is the implicit reward. As in `stages/reward.py`,
all K responses to a prompt are one element of a batch: each runs through the model once, the prompt once for all of
them, and the loss is averaged over their pairs. The same prompts are held out. `--loss` chooses DPO, IPO, cDPO, or
SimPO, which needs no reference.

The reference's log-probabilities are computed once, before the first step, while the policy still equals the reference
(or with its adapters switched off). This needs no second model in memory and no work in later epochs. They are one
number per response, and checkpoints hold them because the reference is gone by then.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tutelage.data.rankings import Ranking, length_matched, same_responses, strict_pairs
from tutelage.data.records import Comparison
from tutelage.data.training_set import read_ranking_sets
from tutelage.evals.preference import mean, preference
from tutelage.learning.losses import margins, pair_accuracy, pair_mean, winner_mask
from tutelage.learning.optim import LearningRate
from tutelage.learning.optimizer import Epochs, OptimizerConfig, scheduled_adamw
from tutelage.learning.preferences import dpo_loss, ipo_loss, simpo_loss
from tutelage.model.gpt import GPT
from tutelage.model.lora import adapters_off
from tutelage.model.parameters import trainable
from tutelage.options import Advanced, NonNegative, PartialShare, Range, Share, Size
from tutelage.runs.adapter import adapt, save_tuned
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, Figure, command, counted, short_training, training_loss
from tutelage.runs.folder import load_policy
from tutelage.runs.log import read_metrics
from tutelage.runs.run import Run
from tutelage.runs.snapshots import SnapshotConfig, save_snapshot
from tutelage.runs.steps import training_steps
from tutelage.sampling.likelihood import summed_logprobs
from tutelage.text.tokenizer import Tokenizer

Smoothing = Annotated[float, Range(least=0, below=0.5, why="from 0.5 on the worse response would win")]
NAMES = {"dpo": "DPO", "ipo": "IPO", "cdpo": "cDPO", "simpo": "SimPO"}


@dataclass(frozen=True, kw_only=True)
class DPOConfig(OptimizerConfig, SnapshotConfig):
    """One run on rankings. The defaults suit a small model on a laptop; help texts give the papers' values."""

    loss: Literal["dpo", "ipo", "cdpo", "simpo"] = "dpo"
    """dpo; ipo: the margin has a target; cdpo: some labels are assumed wrong; simpo: no reference."""
    beta: NonNegative = 0.0
    """KL coefficient, the weight of the log ratio to the reference (simpo: scale of the mean log-probability). 0 means
    0.1, and 2 for simpo."""
    smoothing: Advanced[Smoothing] = 0.1
    """Share of labels that cdpo assumes to be wrong; must be below 0.5."""
    gamma: Advanced[NonNegative] = 1.0
    """Reward margin by which simpo wants the better response to win."""
    epochs: Epochs = 1
    """Passes over the rankings."""
    batch: Size = 8
    """Prompts per optimizer step, each with all its responses (DPO paper: 64 pairs)."""
    lr: LearningRate = 2e-4
    """Peak learning rate of AdamW, for a few million parameters (DPO paper: RMSprop with 1e-6)."""
    warmup: Advanced[Share] = 0.1
    """Share of the steps over which the learning rate rises (DPO paper: 150 steps)."""
    heldout: PartialShare = 0.12
    """Share of the prompts whose rankings are held out from training: the same prompts as for the reward model."""

    @property
    def scale(self) -> float:
        return self.beta or (2.0 if self.loss == "simpo" else 0.1)


@dataclass(frozen=True)
class BatchLogprobs:
    """P rankings of up to K responses, zero-padded. All tensors (P, K), except `pairs`."""

    logprobs: Tensor  # log pi(response | prompt), summed over the response's tokens, end of turn included
    ref_logprobs: Tensor  # the same under the reference
    lengths: Tensor  # tokens of each response
    pairs: Tensor  # (P, K, K) True where the response of the row is ranked above that of the column


def dpo(policy: Path, comparisons: tuple[Path, ...], out: Path, config: DPOConfig = DPOConfig()) -> None:
    """Train a policy on rankings directly, without a reward model: DPO, IPO, cDPO or SimPO.

    policy: SFT run to train; also the reference.
    comparisons: Files with comparisons or pairs to train on: JSONL, or one JSON array. Or a server's data folder or
    database URL.
    out: Run directory to write.

    Example: tutelage dpo --policy runs/sft --comparisons ranks.jsonl --out runs/dpo
    """
    policy = find_base(policy)
    with Run(out, stage="dpo", config=config, inputs={"policy": policy, "comparisons": comparisons}) as run:
        if run.finished:
            return
        model, tokenizer = load_policy(policy, run.device, frozen=config.adapted)
        adapt(model, config, run.generator("adapter"))
        sets = read_ranking_sets(comparisons, tokenizer, model.config.context, config.heldout, "dpo")
        prompts = same_responses(sets.rankings)
        state = run.restore()
        rankings = [group[0] for group in prompts] + sets.heldout_rankings
        reference = state["reference"] if state else reference_logprobs(model, rankings, config, tokenizer.pad_id)
        steps = train(run, config, model.train(), prompts, reference, state, tokenizer)
        known = reference[len(prompts) :]
        results = accuracy_report(model.eval(), tokenizer, sets.heldout, sets.heldout_rankings, known, config)
        save_tuned(out, model, tokenizer, policy, config)
        results |= sets.counts
        run.finish(results, ending(run, config, policy, results, steps, sets.left_out.sentences))


def ending(
    run: Run, config: DPOConfig, policy: Path, results: dict[str, float | None], steps: int, left_out: Sequence[str]
) -> Ending:
    """At the start the policy equals the reference: every margin is 0, and the accuracy 50%. SimPO has no reference."""
    simpo = config.loss == "simpo"
    at_start = None if simpo else float(pair_losses(torch.zeros(()), config))
    pairs = f"on {results['heldout_pairs']:,} held-out pairs"
    accuracy = Figure(
        f"accuracy {pairs}", results["accuracy"], start=None if simpo else 0.5, better="higher", format=".1%"
    )
    loss = Figure("held-out loss", results["heldout_loss"], start=at_start, better="lower")
    if simpo or loss.value is None:
        loss = training_loss(read_metrics(run.metrics.path))
    rankings = counted(results["rankings"] or 0, "ranking")
    return Ending(
        f"trained with {NAMES[config.loss]} on {rankings} in {counted(steps, 'step')}",
        [accuracy, loss],
        [*left_out, *short_training(steps, "give more rankings, more --epochs or a smaller --batch")],
        [command("chat", run.out), command("evaluate", run.out, "--sft", policy, "...")],
    )


def train(
    run: Run,
    config: DPOConfig,
    model: GPT,
    prompts: list[list[Ranking]],
    reference: Tensor,
    state: dict[str, Any] | None,
    tokenizer: Tokenizer,
) -> int:
    """The loop: next prompts with all their rankings, loss of their margins, gradient, step.

    Returns the number of steps.
    """
    generator = run.generator("order")
    order = [i for _ in range(config.epochs) for i in torch.randperm(len(prompts), generator=generator).tolist()]
    steps = math.ceil(len(order) / config.batch)
    optimizer = scheduled_adamw(trainable(model), config, steps)
    for step in training_steps(run, model, optimizer.optimizers, steps, state, {"reference": reference}):
        chosen = order[step * config.batch : (step + 1) * config.batch]
        rankings = [ranking for i in chosen for ranking in prompts[i]]
        known = torch.stack([reference[i] for i in chosen for _ in prompts[i]])
        batch = batch_logprobs(model, rankings, known, tokenizer.pad_id)
        loss = preference_loss(batch, config)
        lr, norm = optimizer.step(loss, step)
        measured = describe(batch, config)
        run.log(step + 1, loss=loss.item(), **measured, lr=lr, grad_norm=norm)
        run.progress.update((step + 1) / steps, loss=loss.item(), accuracy=measured["accuracy"])
        if config.snapshot_due(step + 1, steps):
            save_snapshot(run, config, step + 1, model, tokenizer)
    return steps


@torch.no_grad()
def reference_logprobs(model: GPT, rankings: Sequence[Ranking], config: DPOConfig, pad: int) -> Tensor:
    """(N, K) log pi_ref of all responses, on the CPU; zeros for SimPO, which has no reference."""
    if config.loss == "simpo":
        return torch.zeros(len(rankings), max(len(ranking.sequences) for ranking in rankings))
    with adapters_off(model):
        logprobs = summed_logprobs(model, [r.sequences for r in rankings], [r.prompt_length for r in rankings], pad)
    return pad_sequence(logprobs, batch_first=True).cpu()


def batch_logprobs(model: GPT, rankings: Sequence[Ranking], reference: Tensor, pad: int) -> BatchLogprobs:
    """Run the policy over all responses of P rankings. reference: (P, K or more), from `reference_logprobs`."""
    each = summed_logprobs(model, [r.sequences for r in rankings], [r.prompt_length for r in rankings], pad)
    logprobs = pad_sequence(each, batch_first=True)
    lengths = pad_sequence(
        [torch.tensor([len(s) - r.prompt_length for s in r.sequences]) for r in rankings], batch_first=True
    )
    ranks = pad_sequence([torch.tensor(r.ranks) for r in rankings], batch_first=True)
    device = logprobs.device
    return BatchLogprobs(
        logprobs=logprobs,
        ref_logprobs=reference[:, : logprobs.shape[1]].to(device),
        lengths=lengths.to(device),
        pairs=winner_mask(ranks, lengths > 0).to(device),
    )


def preferred_by(batch: BatchLogprobs, config: DPOConfig) -> Tensor:
    """(P, K) implicit rewards divided by beta; their differences are the margins. SimPO: mean log-probabilities."""
    if config.loss == "simpo":
        return batch.logprobs / batch.lengths.clamp(min=1)
    return batch.logprobs - batch.ref_logprobs


def preference_loss(batch: BatchLogprobs, config: DPOConfig) -> Tensor:
    """The chosen loss of each pair's margin; mean over the pairs of a ranking, then over rankings."""
    return pair_mean(pair_losses(margins(preferred_by(batch, config)), config), batch.pairs)


def pair_losses(margin: Tensor, config: DPOConfig) -> Tensor:
    """The chosen loss of margins of any shape."""
    if config.loss == "ipo":
        return ipo_loss(margin, beta=config.scale)
    if config.loss == "simpo":
        return simpo_loss(margin, beta=config.scale, gamma=config.gamma)
    return dpo_loss(margin, beta=config.scale, smoothing=config.smoothing if config.loss == "cdpo" else 0.0)


@torch.no_grad()
def describe(batch: BatchLogprobs, config: DPOConfig) -> dict[str, float]:
    """The logged figures. Chosen and rejected are means over pairs: a response counts as often as it wins or loses.

    Both log-probabilities usually fall. If the chosen one falls by tens of nats, lower the learning rate or raise beta.
    """
    preferred = preferred_by(batch, config)
    rewards, won, lost = config.scale * preferred, batch.pairs.sum(2), batch.pairs.sum(1)
    count = won.sum()
    chosen, rejected = float((rewards * won).sum() / count), float((rewards * lost).sum() / count)
    return {
        "accuracy": pair_accuracy(preferred, batch.pairs),
        "reward_margin": chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "chosen_logprob": float((batch.logprobs * won).sum() / count),
        "rejected_logprob": float((batch.logprobs * lost).sum() / count),
    }


@torch.no_grad()
def accuracy_report(
    model: GPT,
    tokenizer: Tokenizer,
    heldout: Sequence[Comparison],
    encoded: Sequence[Ranking],
    reference: Tensor,
    config: DPOConfig,
) -> dict[str, float | None]:
    """How well the implicit reward orders held-out pairs: all of them, and those of equal length."""
    if not heldout:
        return {"accuracy": None, "length_matched_accuracy": None, "heldout_loss": None, "heldout_pairs": 0}
    batch = batch_logprobs(model, encoded, reference, tokenizer.pad_id)
    right: list[float] = []
    matched: list[bool] = []
    for comparison, values in zip(heldout, preferred_by(batch, config).tolist(), strict=True):
        right += [preference(values[winner], values[loser]) for winner, loser in strict_pairs(comparison.ranks)]
        matched += length_matched(comparison, tokenizer)
    return {
        "accuracy": mean(right),
        "length_matched_accuracy": mean([r for r, m in zip(right, matched, strict=True) if m]),
        "heldout_loss": float(preference_loss(batch, config)),
        "heldout_pairs": len(right),
    }
