"""Reward model from rankings: step 2 of InstructGPT (Ouyang et al. 2022, section 3.5, eq. 1).

    SFT model -> trunk and a new scalar head -> -log sigmoid(r_w - r_l), averaged over all pairs of a ranking

All K responses to a prompt are one element of a batch, so the pairs of a prompt never become separate updates. Each
response runs through the model once, and the prompt once for all of them (`model/shared_prefix.py`). Ties are dropped.
After training the scores are shifted so that demonstrations score 0 on average; their standard deviation is saved with
that mean, for ensembles. The rankings of some prompts are held out. The accuracy on them is reported next to the
accuracy of the panel's gold score on the same pairs. At the end the model is probed with degenerate responses
(`evals/reward_probe.py`); with --reject-degenerate it is trained against them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tutelage.data.degenerate import degenerate_response
from tutelage.data.demonstrations import windows
from tutelage.data.panel import Panel
from tutelage.data.rankings import Ranking, encode_ranking, encode_response, held_out, same_responses, strict_pairs
from tutelage.data.records import Comparison, Messages, read_comparisons, read_demonstrations
from tutelage.errors import InputError
from tutelage.evals.reward_accuracy import accuracy_report
from tutelage.evals.reward_probe import probe, probe_figure, probe_warnings
from tutelage.learning.losses import pair_accuracy, ranking_loss, winner_mask
from tutelage.learning.optimizer import OptimizerConfig, scheduled_adamw
from tutelage.model.heads import ScalarGPT
from tutelage.model.parameters import trainable
from tutelage.model.shared_prefix import score_texts
from tutelage.options import Advanced
from tutelage.runs.adapter import AdapterConfig, adapt, save_tuned_scorer
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, Figure, command, counted, short_training, training_loss
from tutelage.runs.folder import load_policy
from tutelage.runs.identity import Inputs
from tutelage.runs.log import read_metrics
from tutelage.runs.run import Run
from tutelage.runs.steps import training_steps
from tutelage.text.chat import encode_chat
from tutelage.text.tokenizer import Tokenizer

DEMONSTRATION = 128  # maximum tokens of a scored demonstration: about the length of the texts in rankings and PPO


@dataclass(frozen=True, kw_only=True)
class RewardConfig(OptimizerConfig, AdapterConfig):
    """One reward model. The defaults suit a small model on a laptop."""

    epochs: int = 1
    """Passes over the rankings. InstructGPT found that more than one overfits (appendix C.2)."""
    batch: int = 8
    """Prompts per optimizer step, each with all its responses (InstructGPT: 64)."""
    lr: float = 1e-3
    """Peak learning rate of AdamW (InstructGPT 6B: 9e-6)."""
    warmup: Advanced[float] = 0.05
    """Share of the steps over which the learning rate rises."""
    heldout: float = 0.12
    """Share of the prompts whose rankings are held out from training."""
    reject_degenerate: bool = False
    """Add an empty, one-word, stock, repeated or copied response to each ranking, as its worst. See the probe at the
    end of a training for whether this is needed."""
    demonstrations: Advanced[int] = 256
    """Number of demonstrations whose mean score is set to 0."""


def reward(
    base: Path,
    comparisons: tuple[Path, ...],
    demos: tuple[Path, ...],
    out: Path,
    panel: Path | None = None,
    config: RewardConfig = RewardConfig(),
) -> None:
    """Train a reward model on rankings, starting from the SFT model.

    base: SFT run to start from.
    comparisons: JSONL files with comparisons to train on.
    demos: JSONL files with demonstrations. The mean score of some of them is set to 0.
    out: Run directory to write.
    panel: Panel file (panel.json). With it the accuracy is compared with that of the noise-free gold score.

    Example: tutelage reward --base runs/sft --comparisons ranks.jsonl --demos demonstrations.jsonl --out runs/reward
    """
    if config.adapter_only:
        raise InputError("reward: later stages need the merged model; leave --adapter-only out")
    base = find_base(base)
    inputs: Inputs = {"base": base, "comparisons": comparisons, "demos": demos, "panel": panel}
    with Run(out, stage="reward", config=config, inputs=inputs) as run:
        if run.finished:
            return
        trunk, tokenizer = load_policy(base, run.device, frozen=config.adapted)
        adapt(trunk, config, run.generator("adapter"))
        model = ScalarGPT(trunk).initialise(run.generator("head")).to(run.device.torch_device).train()
        strict = [c for c in read_comparisons(comparisons) if strict_pairs(c.ranks)]
        heldout = [c for c in strict if held_out(c, config.heldout)]
        kept = [c for c in strict if not held_out(c, config.heldout)]
        if not kept:
            raise InputError("reward: no ranking with a strict order is left to train on; give more rankings")
        rankings = encode_rankings(kept, tokenizer, trunk.config.context, config)
        steps = train(run, config, model, rankings, tokenizer.pad_id)
        model.eval()
        good = demonstrations(model, tokenizer, demos, config, run.generator("demonstrations"))
        scores = conversation_scores(model, tokenizer, good)
        model.mean, model.std = float(scores.mean()), float(scores.std(correction=0))
        results: dict[str, Any] = accuracy_report(model, tokenizer, heldout, Panel.load(panel) if panel else None)
        results |= {"probe": probe(model, tokenizer, good)}
        save_tuned_scorer(out, model, tokenizer, base, config)
        results |= {"reward_mean": model.mean, "reward_std": model.std}
        results |= {"rankings": len(kept), "rankings_held_out": len(heldout)}
        run.finish(results, ending(run, base, config, results, steps))


def ending(run: Run, base: Path, config: RewardConfig, results: dict[str, Any], steps: int) -> Ending:
    accuracy, ceiling = results["accuracy"], results["ceiling"]
    known = "chance is 50%" + (f", the panel's gold score reaches {ceiling:.1%}" if ceiling is not None else "")
    warnings = short_training(steps, "give more rankings or a smaller --batch")
    if accuracy is None:
        warnings.append("no ranking was held out, so the accuracy is unknown; raise --heldout")
    elif accuracy <= 0.5:
        warnings.append("the reward model is no better than chance on held-out pairs; give more rankings")
    warnings += probe_warnings(results["probe"], config.reject_degenerate)
    return Ending(
        f"trained on {results['rankings']:,} rankings in {counted(steps, 'step')}",
        [
            Figure(f"accuracy on {results['heldout_pairs']:,} held-out pairs", accuracy, note=known, format=".1%"),
            training_loss(read_metrics(run.metrics.path)),
            probe_figure(results["probe"]),
        ],
        warnings,
        [command("ppo", "--policy", base, "--reward", run.out, "..."), command("score", run.out, "FILE.jsonl")],
    )


def encode_rankings(
    comparisons: Sequence[Comparison], tokenizer: Tokenizer, context: int, config: RewardConfig
) -> list[Ranking]:
    """With --reject-degenerate each has one more response, worse than all others."""
    rankings = [encode_ranking(comparison, tokenizer, context) for comparison in comparisons]
    if not config.reject_degenerate:
        return rankings
    losers = [encode_response(c.prompt, degenerate_response(c, str(config.seed)), tokenizer) for c in comparisons]
    return [with_loser(ranking, loser, context) for ranking, loser in zip(rankings, losers, strict=True)]


def with_loser(ranking: Ranking, loser: list[int], context: int) -> Ranking:
    """Unchanged if the loser is one of its responses or does not fit."""
    if loser in ranking.sequences or len(loser) > context:
        return ranking
    return Ranking([*ranking.sequences, loser], [*ranking.ranks, max(ranking.ranks) + 1], ranking.prompt_length)


def train(run: Run, config: RewardConfig, model: ScalarGPT, rankings: list[Ranking], pad: int) -> int:
    """The loop: next prompts with all their rankings, ranking loss, gradient, step. Returns the number of steps."""
    prompts = same_responses(rankings)
    generator = run.generator("order")
    order = [i for _ in range(config.epochs) for i in torch.randperm(len(prompts), generator=generator).tolist()]
    steps = math.ceil(len(order) / config.batch)
    optimizer = scheduled_adamw(trainable(model), config, steps)
    for step in training_steps(run, model, optimizer.optimizers, steps, run.restore()):
        chosen = order[step * config.batch : (step + 1) * config.batch]
        scores, ranks, mask = score_rankings(model, [ranking for i in chosen for ranking in prompts[i]], pad)
        loss = ranking_loss(scores, ranks, mask)
        lr, norm = optimizer.step(loss, step)
        accuracy = pair_accuracy(scores.detach(), winner_mask(ranks, mask))
        run.log(step + 1, loss=loss.item(), accuracy=accuracy, lr=lr, grad_norm=norm)
        run.progress.update((step + 1) / steps, loss=loss.item(), accuracy=accuracy)
    return steps


def score_rankings(model: ScalarGPT, rankings: Sequence[Ranking], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, ranks, and a mask of the responses that exist, all (P, K); K is that of the longest ranking."""
    device = model.score.weight.device
    scores = pad_sequence(score_texts(model, [ranking.sequences for ranking in rankings], pad), batch_first=True)
    ranks = pad_sequence([torch.tensor(ranking.ranks) for ranking in rankings], batch_first=True).to(device)
    sizes = torch.tensor([len(ranking.sequences) for ranking in rankings])
    mask = torch.arange(scores.shape[1]) < sizes[:, None]
    return scores, ranks, mask.to(device)


def demonstrations(
    model: ScalarGPT, tokenizer: Tokenizer, demos: Sequence[Path], config: RewardConfig, generator: torch.Generator
) -> list[Messages]:
    """Conversations that end with a demonstration: the first window of each that fits DEMONSTRATION tokens or half the
    context, whichever is less.
    """
    read = read_demonstrations(demos)
    limit = min(model.trunk.config.context, 2 * DEMONSTRATION) // 2
    chosen: list[Messages] = []
    for i in torch.randperm(len(read), generator=generator).tolist():
        if len(chosen) >= config.demonstrations:
            break
        fitting, _ = windows(read[i].messages, lambda messages: encode_chat(tokenizer, messages), limit)
        chosen += fitting[:1]
    if not chosen:
        raise InputError(
            f"reward: no demonstration fits {limit} tokens, so no score can be set to 0; give shorter ones"
        )
    return chosen


@torch.no_grad()
def conversation_scores(model: ScalarGPT, tokenizer: Tokenizer, conversations: Sequence[Messages]) -> Tensor:
    """(N,) scores of the conversations' last responses."""
    texts = [encode_response(messages[:-1], messages[-1]["content"], tokenizer) for messages in conversations]
    return torch.cat(score_texts(model, [[text] for text in texts], tokenizer.pad_id))
