"""Rankings to a policy without a reward model: DPO (Rafailov et al. 2023) and its family.

    SFT model -> log pi and log pi_ref of whole responses -> margins h of all pairs of a ranking -> a loss of h

The policy starts as the reference and its log ratios to it are the implicit reward. A ranking is one element of a batch
as in `stages/reward.py`: its K answers are run once, its prompt once for all of them, its pairs averaged; the same
prompts are held out. `--loss` takes DPO, IPO, cDPO, or SimPO, which has no reference.
The reference's log-probabilities are computed once, before the first step, while the policy still is the reference (or
its adapters are off): no second model in memory, and nothing to compute in further epochs. They are one number per
answer, and checkpoints hold them, as by then the reference is gone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tutelage.data.rankings import Ranking, encode_ranking, held_out, length_matched, same_responses, strict_pairs
from tutelage.data.records import Comparison, read_comparisons
from tutelage.errors import InputError
from tutelage.evals.preference import mean, preference
from tutelage.learning.losses import margins, pair_mean, pairs_right, winning
from tutelage.learning.optimizer import OptimizerConfig, scheduled_adamw
from tutelage.learning.preferences import dpo_loss, ipo_loss, simpo_loss
from tutelage.model.gpt import GPT
from tutelage.model.lora import adapters_off
from tutelage.model.parameters import trainable
from tutelage.runs.adapter import adapt, save_tuned
from tutelage.runs.base import find_base
from tutelage.runs.folder import load_policy
from tutelage.runs.run import Run
from tutelage.runs.snapshots import SnapshotConfig, save_snapshot
from tutelage.runs.steps import training_steps
from tutelage.sampling.likelihood import summed_logprobs
from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class DPOConfig(OptimizerConfig, SnapshotConfig):
    """One run on rankings. Defaults suit a small model on a laptop; the paper's numbers stand beside them."""

    loss: Literal["dpo", "ipo", "cdpo", "simpo"] = "dpo"
    """dpo; ipo, whose margin has a target; cdpo, which takes some labels to be wrong; simpo, without a reference."""
    beta: float = 0.0
    """Price of a nat of drift from the reference (simpo: scale of the mean log-probability); 0 is .1, in simpo 2."""
    smoothing: float = 0.1
    """Share of labels that cdpo takes to be wrong; below .5."""
    gamma: float = 1.0
    """Reward by which simpo wants the better response to win."""
    epochs: int = 1
    """Passes over the rankings."""
    batch: int = 8
    """Prompts per optimizer step, each with all its answers; 64 pairs in the paper."""
    lr: float = 2e-4
    """Peak rate of AdamW, for models of a few million parameters; the paper has RMSprop with 1e-6."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises; 150 steps in the paper."""
    heldout: float = 0.12
    """Share of the prompts whose rankings are kept from training: those that the reward model does not see either."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smoothing >= 0.5:
            raise InputError(f"--smoothing {self.smoothing}: must be below 0.5, or the worse response would win")

    @property
    def scale(self) -> float:
        return self.beta or (2.0 if self.loss == "simpo" else 0.1)


@dataclass(frozen=True)
class Judged:
    """P rankings of up to K answers; 0 where a ranking has fewer. All (P, K), but for `pairs`."""

    logprobs: Tensor  # log pi(answer | prompt), summed over the answer's tokens, its end of turn included
    ref_logprobs: Tensor  # the same of the reference
    lengths: Tensor  # tokens of each answer
    pairs: Tensor  # (P, K, K) True where the answer of the row is ranked above that of the column


def dpo(policy: Path, comparisons: tuple[Path, ...], out: Path, config: DPOConfig = DPOConfig()) -> None:
    """Train a policy on rankings directly, without a reward model: DPO, IPO, cDPO or SimPO.

    Example: tutelage dpo --policy runs/sft --comparisons ranks.jsonl --out runs/dpo
    """
    policy = find_base(policy)
    with Run(out, stage="dpo", config=config, inputs={"policy": policy, "comparisons": comparisons}) as run:
        if run.finished:
            return
        model, tokenizer = load_policy(policy, run.device, frozen=config.adapted)
        adapt(model, config, run.generator("adapter"))
        told = [c for c in read_comparisons(comparisons) if strict_pairs(c.ranks)]
        held = [c for c in told if held_out(c, config.heldout)]
        kept = [c for c in told if not held_out(c, config.heldout)]
        if not kept:
            raise InputError("dpo: no ranking with a strict order is left to train on; give more rankings")
        prompts = same_responses([encode_ranking(c, tokenizer, model.config.context) for c in kept])
        unseen = [encode_ranking(c, tokenizer, model.config.context) for c in held]
        state = run.restore()
        asked = [rankings[0] for rankings in prompts] + unseen
        reference = state["reference"] if state else reference_logprobs(model, asked, config, tokenizer.pad_id)
        train(run, config, model.train(), prompts, reference, state, tokenizer)
        results = accuracy_report(model.eval(), tokenizer, held, unseen, reference[len(prompts) :], config)
        save_tuned(out, model, tokenizer, policy, config)
        run.finish(results | {"rankings": len(kept), "rankings_held_out": len(held)})


def train(
    run: Run,
    config: DPOConfig,
    model: GPT,
    prompts: list[list[Ranking]],
    reference: Tensor,
    state: dict[str, Any] | None,
    tokenizer: Tokenizer,
) -> None:
    """The loop: next prompts with all their rankings, loss of their margins, gradient, step."""
    generator = run.generator("order")
    order = [i for _ in range(config.epochs) for i in torch.randperm(len(prompts), generator=generator).tolist()]
    steps = math.ceil(len(order) / config.batch)
    optimizer = scheduled_adamw(trainable(model), config, steps)
    for step in training_steps(run, model, optimizer.optimizers, steps, state, {"reference": reference}):
        chosen = order[step * config.batch : (step + 1) * config.batch]
        rankings = [ranking for i in chosen for ranking in prompts[i]]
        known = torch.stack([reference[i] for i in chosen for _ in prompts[i]])
        batch = judge(model, rankings, known, tokenizer.pad_id)
        loss = preference_loss(batch, config)
        lr, norm = optimizer.step(loss, step)
        measured = describe(batch, config)
        run.log(step + 1, loss=loss.item(), **measured, lr=lr, grad_norm=norm)
        run.progress.update((step + 1) / steps, loss=loss.item(), accuracy=measured["accuracy"])
        if config.snapshot_due(step + 1, steps):
            save_snapshot(run, step + 1, model, tokenizer)


@torch.no_grad()
def reference_logprobs(model: GPT, rankings: Sequence[Ranking], config: DPOConfig, pad: int) -> Tensor:
    """(N, K) log pi_ref of all answers, on the CPU; zeros for SimPO, which does without."""
    if config.loss == "simpo":
        return torch.zeros(len(rankings), max(len(ranking.answers) for ranking in rankings))
    with adapters_off(model):
        found = summed_logprobs(model, [r.answers for r in rankings], [r.prompt for r in rankings], pad)
    return pad_sequence(found, batch_first=True).cpu()


def judge(model: GPT, rankings: Sequence[Ranking], reference: Tensor, pad: int) -> Judged:
    """Run the policy over all answers of some rankings. reference (P, K or more), as `reference_logprobs` gives it."""
    each = summed_logprobs(model, [r.answers for r in rankings], [r.prompt for r in rankings], pad)
    logprobs = pad_sequence(each, batch_first=True)
    lengths = pad_sequence([torch.tensor([len(a) - r.prompt for a in r.answers]) for r in rankings], batch_first=True)
    ranks = pad_sequence([torch.tensor(r.ranks) for r in rankings], batch_first=True)
    device = logprobs.device
    return Judged(
        logprobs=logprobs,
        ref_logprobs=reference[:, : logprobs.shape[1]].to(device),
        lengths=lengths.to(device),
        pairs=winning(ranks, lengths > 0).to(device),
    )


def preferred_by(batch: Judged, config: DPOConfig) -> Tensor:
    """(P, K) what the margins are differences of: implicit rewards over beta."""
    if config.loss == "simpo":
        return batch.logprobs / batch.lengths.clamp(min=1)
    return batch.logprobs - batch.ref_logprobs


def preference_loss(batch: Judged, config: DPOConfig) -> Tensor:
    """The chosen loss of each pair's margin; mean over the pairs of a ranking, then over rankings."""
    margin, beta = margins(preferred_by(batch, config)), config.scale
    if config.loss == "ipo":
        losses = ipo_loss(margin, beta=beta)
    elif config.loss == "simpo":
        losses = simpo_loss(margin, beta=beta, gamma=config.gamma)
    else:
        losses = dpo_loss(margin, beta=beta, smoothing=config.smoothing if config.loss == "cdpo" else 0.0)
    return pair_mean(losses, batch.pairs)


@torch.no_grad()
def describe(batch: Judged, config: DPOConfig) -> dict[str, float]:
    """What people look at. Chosen and rejected are means over the pairs: an answer counts as often as it wins or loses.

    Both log-probabilities usually fall. A chosen one that falls by tens of nats asks for a lower rate or a higher beta.
    """
    preferred = preferred_by(batch, config)
    rewards, won, lost = config.scale * preferred, batch.pairs.sum(2), batch.pairs.sum(1)
    count = won.sum()
    chosen, rejected = float((rewards * won).sum() / count), float((rewards * lost).sum() / count)
    return {
        "accuracy": pairs_right(preferred, batch.pairs),
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
    held: Sequence[Comparison],
    unseen: Sequence[Ranking],
    reference: Tensor,
    config: DPOConfig,
) -> dict[str, float | None]:
    """How well the implicit reward orders held-out pairs, all of them and those of equal length."""
    if not held:
        return {"accuracy": None, "length_matched_accuracy": None, "heldout_loss": None, "heldout_pairs": 0}
    batch = judge(model, unseen, reference, tokenizer.pad_id)
    right: list[float] = []
    matched: list[bool] = []
    for comparison, values in zip(held, preferred_by(batch, config).tolist(), strict=True):
        right += [preference(values[winner], values[loser]) for winner, loser in strict_pairs(comparison.ranks)]
        matched += length_matched(comparison, tokenizer)
    return {
        "accuracy": mean(right),
        "length_matched_accuracy": mean([r for r, m in zip(right, matched, strict=True) if m]),
        "heldout_loss": float(preference_loss(batch, config)),
        "heldout_pairs": len(right),
    }
