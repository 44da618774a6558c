"""Preference training on thumbs up and down: KTO (Ethayarajh et al. 2024), which needs no pairs of responses.

    SFT model -> log pi/pi_ref of each response, and z0 -> lambda - v(log ratio - z0)

z0 estimates the KL of the policy from the reference. A response's value v grows with its log ratio above z0: the loss
raises liked responses above z0 and pushes the others below it. As in the paper, z0 comes from the step's own batch:
each prompt with the response to another prompt, without a gradient, and never below 0. Ours: the other response is the
next one in the batch that belongs to another prompt and fits the context.

The reference's log-probabilities are computed once, before the first step, for the reasons given in `stages/dpo.py`.
The order of the batches is known by then, and with it the responses that z0 needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from tutelage.data.rankings import Thumb
from tutelage.data.training_set import ThumbSets, amount, read_thumb_sets
from tutelage.errors import InputError
from tutelage.evals.preference import mean
from tutelage.learning.optim import LearningRate
from tutelage.learning.optimizer import Epochs, OptimizerConfig, scheduled_adamw
from tutelage.learning.preferences import kto_loss, liked_pair_accuracy, reference_point
from tutelage.model.gpt import GPT
from tutelage.model.lora import adapters_off
from tutelage.model.parameters import trainable
from tutelage.options import PartialShare, Range
from tutelage.runs.adapter import AdapterConfig, adapt, save_tuned
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, Figure, command, counted, short_training, training_loss
from tutelage.runs.folder import load_policy
from tutelage.runs.log import read_metrics
from tutelage.runs.run import Run
from tutelage.runs.steps import training_steps
from tutelage.sampling.likelihood import summed_logprobs

ADVISED = (1.0, 4 / 3)  # range of n_D lambda_D / (n_U lambda_U), thumbs of each kind times their weight: section 4.2

Weight = Annotated[float, Range(above=0, why="at 0 nothing would be learned from it")]


@dataclass(frozen=True, kw_only=True)
class KTOConfig(OptimizerConfig, AdapterConfig):
    """One run on thumbs. The defaults suit a small model on a laptop; help texts give the paper's values."""

    beta: Weight = 0.1
    """How fast the value of a response saturates as its log ratio moves away from z0 (paper: 0.1)."""
    desirable: Weight = 1.0
    """Weight of a thumb up, lambda_D. Thumbs up times it, over thumbs down times --undesirable, should be 1 to 4/3
    (section 4.2)."""
    undesirable: Weight = 1.0
    """Weight of a thumb down, lambda_U."""
    epochs: Epochs = 1
    """Passes over the thumbs."""
    batch: Annotated[int, Range(least=2, most=2**20, why="z0 takes a response to another prompt")] = 16
    """Responses per optimizer step, at least 2 because z0 is estimated within the batch. A last partial batch is
    dropped."""
    lr: LearningRate = 2e-4
    """Peak learning rate of AdamW, for a few million parameters (paper: 5e-6 for 1B to 30B)."""
    heldout: PartialShare = 0.12
    """Share of the prompts whose thumbs are held out from training."""


@dataclass(frozen=True)
class Batch:
    """The thumbs of one step, and what its z0 is estimated from."""

    thumbs: list[Thumb]
    mismatched: list[Thumb]  # prompts of `thumbs`, each with the response to another of them

    @property
    def texts(self) -> list[Thumb]:
        return self.thumbs + self.mismatched


@dataclass(frozen=True)
class BatchLogprobs:
    """B responses under the policy."""

    logprobs: Tensor  # (B,) log pi(response | prompt), summed over the response's tokens, end of turn included
    log_ratios: Tensor  # (B,) log pi - log pi_ref
    liked: Tensor  # (B,) True for a thumb up
    z0: Tensor  # scalar, without a gradient


def kto(policy: Path, feedback: tuple[Path, ...], out: Path, config: KTOConfig = KTOConfig()) -> None:
    """Train a policy on thumbs up and down.

    policy: SFT run to train; also the reference.
    feedback: Files with thumbs, JSONL or one JSON array: a prompt, a response and a thumb each. Or a server's data
    folder or database URL: the thumbs that people gave on its chat page.
    out: Run directory to write.

    Example: tutelage kto --policy runs/sft --feedback thumbs.jsonl --out runs/kto
    """
    policy = find_base(policy)
    with Run(out, stage="kto", config=config, inputs={"policy": policy, "feedback": feedback}) as run:
        if run.finished:
            return
        model, tokenizer = load_policy(policy, run.device, frozen=config.adapted)
        adapt(model, config, run.generator("adapter"))
        sets = read_thumb_sets(feedback, tokenizer, model.config.context, config.heldout)
        heldout = sets.heldout
        counts = sets.counts | check_thumbs(run, config, sets)
        batches = make_batches(sets.kept, config, model.config.context, run.generator("order"))
        state = run.restore()
        reference = state["reference"] if state else reference_logprobs(model, batches, heldout, tokenizer.pad_id)
        train(run, config, model.train(), batches, reference, state, tokenizer.pad_id)
        known = reference[len(reference) - len(heldout) :]
        accuracy = heldout_accuracy(model.eval(), heldout, known, tokenizer.pad_id)
        save_tuned(out, model, tokenizer, policy, config)
        results = {"accuracy": accuracy} | counts
        run.finish(results, ending(run, policy, results, len(batches), sets.left_out.sentences))


def ending(run: Run, policy: Path, results: dict[str, Any], steps: int, left_out: Sequence[str]) -> Ending:
    """At the start the policy equals the reference: all log ratios are 0, and the accuracy 50%."""
    name = f"accuracy on {results['heldout_thumbs']:,} held-out thumbs"
    ups, downs = results["thumbs_up"], results["thumbs_down"]
    return Ending(
        f"trained on {ups:,} thumbs up and {downs:,} thumbs down in {counted(steps, 'step')}",
        [
            Figure(name, results["accuracy"], start=0.5, better="higher", format=".1%"),
            training_loss(read_metrics(run.metrics.path)),
        ],
        [*left_out, *short_training(steps, "give more thumbs, more --epochs or a smaller --batch")],
        [command("chat", run.out), command("evaluate", run.out, "--sft", policy, "...")],
    )


def train(
    run: Run,
    config: KTOConfig,
    model: GPT,
    batches: list[Batch],
    reference: Tensor,
    state: dict[str, Any] | None,
    pad: int,
) -> None:
    """The loop: next thumbs, z0, loss of their log ratios, gradient, step."""
    steps, sizes = len(batches), [len(batch.texts) for batch in batches]
    known = reference[: sum(sizes)].split(sizes)
    optimizer = scheduled_adamw(trainable(model), config, steps)
    for step in training_steps(run, model, optimizer.optimizers, steps, state, {"reference": reference}):
        batch = batch_logprobs(model, batches[step], known[step], pad)
        loss = feedback_loss(batch, config)
        lr, norm = optimizer.step(loss, step)
        measured = describe(batch, config)
        run.log(step + 1, loss=loss.item(), **measured, lr=lr, grad_norm=norm)
        run.progress.update((step + 1) / steps, loss=loss.item(), z0=measured["reference_point"])


def batch_logprobs(model: GPT, batch: Batch, reference: Tensor, pad: int) -> BatchLogprobs:
    """Run the policy over a batch. reference: log pi_ref of its thumbs, then of its mismatched texts."""
    own, others = reference.to(model.embedding.weight.device).split([len(batch.thumbs), len(batch.mismatched)])
    with torch.no_grad():
        z0 = reference_point(thumb_logprobs(model, batch.mismatched, pad) - others)
    logprobs = thumb_logprobs(model, batch.thumbs, pad)
    liked = torch.tensor([thumb.liked for thumb in batch.thumbs], device=logprobs.device)
    return BatchLogprobs(logprobs, logprobs - own, liked, z0)


def feedback_loss(batch: BatchLogprobs, config: KTOConfig) -> Tensor:
    weights = {"desirable": config.desirable, "undesirable": config.undesirable}
    return kto_loss(batch.log_ratios, batch.liked, batch.z0, beta=config.beta, **weights)


@torch.no_grad()
def describe(batch: BatchLogprobs, config: KTOConfig) -> dict[str, Any]:
    """The logged figures: means over the liked (chosen) and the other (rejected) responses, None without any."""
    rewards, up = config.beta * batch.log_ratios, batch.liked
    chosen, rejected = mean(rewards[up].tolist()), mean(rewards[~up].tolist())
    return {
        "accuracy": liked_pair_accuracy(rewards, up),
        "reward_margin": None if chosen is None or rejected is None else chosen - rejected,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "chosen_logprob": mean(batch.logprobs[up].tolist()),
        "rejected_logprob": mean(batch.logprobs[~up].tolist()),
        "reference_point": float(batch.z0),
    }


def thumb_logprobs(model: GPT, thumbs: Sequence[Thumb], pad: int) -> Tensor:
    """(N,) log pi(response | prompt), summed over the response's tokens, end of turn included."""
    texts = [[thumb.prompt + thumb.response] for thumb in thumbs]
    each = summed_logprobs(model, texts, [len(thumb.prompt) for thumb in thumbs], pad)
    return torch.cat(each) if each else torch.zeros(0, device=model.embedding.weight.device)


@torch.no_grad()
def reference_logprobs(model: GPT, batches: Sequence[Batch], heldout: Sequence[Thumb], pad: int) -> Tensor:
    """(N,) log pi_ref of each batch's thumbs and mismatched texts in order, then of the held-out thumbs; on the CPU."""
    with adapters_off(model):
        return thumb_logprobs(model, [thumb for batch in batches for thumb in batch.texts] + list(heldout), pad).cpu()


@torch.no_grad()
def heldout_accuracy(model: GPT, heldout: Sequence[Thumb], reference: Tensor, pad: int) -> float | None:
    """How well the implicit reward separates held-out thumbs up from down (`preferences.py:liked_pair_accuracy`)."""
    ratios = thumb_logprobs(model, heldout, pad).cpu() - reference
    return liked_pair_accuracy(ratios, torch.tensor([thumb.liked for thumb in heldout], dtype=torch.bool))


def make_batches(thumbs: Sequence[Thumb], config: KTOConfig, context: int, order: torch.Generator) -> list[Batch]:
    """Full batches in random order over all epochs; one smaller batch if there are too few thumbs for a full one."""
    numbers = [i for _ in range(config.epochs) for i in torch.randperm(len(thumbs), generator=order).tolist()]
    steps = max(1, len(numbers) // config.batch)
    chosen = [[thumbs[i] for i in numbers[step * config.batch :][: config.batch]] for step in range(steps)]
    return [Batch(minibatch, mismatched_of(minibatch, context)) for minibatch in chosen]


def mismatched_of(thumbs: Sequence[Thumb], context: int) -> list[Thumb]:
    """Each prompt with the next response in the batch that belongs to another prompt and fits the context, if any."""
    mismatched = []
    for i, thumb in enumerate(thumbs):
        others = (*thumbs[i + 1 :], *thumbs[:i])
        room = context - len(thumb.prompt)
        fitting = (o.response for o in others if o.prompt != thumb.prompt and len(o.response) <= room)
        mismatched += [Thumb(thumb.prompt, response, thumb.liked) for response in islice(fitting, 1)]
    return mismatched


def check_thumbs(run: Run, config: KTOConfig, sets: ThumbSets) -> dict[str, float]:
    """Count the thumbs of each kind and their weight ratio, and print a line if the paper advises another ratio."""
    thumbs, others = sets.kept, [*sets.left_out.sentences]
    ups = sum(thumb.liked for thumb in thumbs)
    downs = len(thumbs) - ups
    if sets.heldout:
        others.append(f"{amount(len(sets.heldout), 'thumb')} more are held out: --heldout 0 trains on them, too")
    why = "".join(f"; {sentence}" for sentence in others)
    if not ups or not downs:
        raise InputError(
            f"kto: {ups} thumbs up and {downs} down are left to train on; it takes both: add the others{why}"
        )
    if all(thumb.prompt == thumbs[0].prompt for thumb in thumbs):
        raise InputError(f"kto: all {len(thumbs)} thumbs are for one prompt, z0 takes two; add thumbs for another{why}")
    ratio = ups * config.desirable / (downs * config.undesirable)
    if not ADVISED[0] <= round(ratio, 2) <= ADVISED[1]:
        fix = ("undesirable", config.undesirable * ratio) if ratio > 1 else ("desirable", config.desirable / ratio)
        run.progress.say(
            f"{run.out}: {ups} thumbs up and {downs} down weigh {ratio:.2f} to 1; the paper advises 1 to 1.33: "
            f"give --{fix[0]} {fix[1]:.3g}"
        )
    return {"thumbs_up": ups, "thumbs_down": downs, "weight_ratio": ratio}
