"""Reward model from rankings: step 2 of InstructGPT (Ouyang et al. 2022, section 3.5, eq. 1).

    SFT model -> trunk and a new scalar head -> -log sigmoid(r_w - r_l), averaged over all pairs of a ranking

All K responses to a prompt are one element of a batch, so the pairs of a prompt never become separate updates. Each
response runs through the model once, and the prompt once for all of them (`model/shared_prefix.py`). Ties are dropped.
After training the scores are shifted so that demonstrations score 0 on average, or without any the best-ranked
responses. Their standard deviation is saved with that mean, for ensembles. The rankings of some prompts are held out.
The accuracy on them is reported next to the accuracy of the panel's gold score on the same pairs. At the end the model
is probed with degenerate responses (`evals/reward_probe.py`); with --reject-degenerate it is trained against them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tutelage.data.degenerate import best_response, ending_with
from tutelage.data.degenerate_rankings import demonstrations_first, with_losers
from tutelage.data.demonstrations import windows
from tutelage.data.messages import Messages
from tutelage.data.panel import Panel
from tutelage.data.rankings import Ranking, encode_response, same_responses
from tutelage.data.records import read_demonstrations
from tutelage.data.training_set import RankingSets, read_ranking_sets
from tutelage.errors import InputError, located
from tutelage.evals.reward_accuracy import accuracy_report
from tutelage.evals.reward_probe import probe, probe_figure, probe_warnings
from tutelage.learning.losses import pair_accuracy, ranking_loss, winner_mask
from tutelage.learning.optim import LearningRate
from tutelage.learning.optimizer import Epochs, OptimizerConfig, scheduled_adamw
from tutelage.model.heads import ScalarGPT
from tutelage.model.parameters import trainable
from tutelage.model.shared_prefix import score_texts
from tutelage.options import Advanced, Count, PartialShare, Share, Size
from tutelage.runs.adapter import AdapterConfig, adapt, save_tuned_scorer
from tutelage.runs.base import find_base
from tutelage.runs.ending import Ending, Figure, command, counted, short_training, training_loss
from tutelage.runs.folder import load_policy
from tutelage.runs.identity import Inputs
from tutelage.runs.log import read_metrics
from tutelage.runs.run import Run
from tutelage.runs.steps import training_steps
from tutelage.text.chat import training_size
from tutelage.text.tokenizer import Tokenizer

DEMONSTRATION = 128  # maximum tokens of a scored demonstration: about the length of the texts in rankings and PPO


@dataclass(frozen=True, kw_only=True)
class RewardConfig(OptimizerConfig, AdapterConfig):
    """One reward model. The defaults suit a small model on a laptop."""

    epochs: Epochs = 1
    """Passes over the rankings. InstructGPT found that more than one overfits (appendix C.2)."""
    batch: Size = 8
    """Prompts per optimizer step, each with all its responses (InstructGPT: 64)."""
    lr: LearningRate = 1e-3
    """Peak learning rate of AdamW (InstructGPT 6B: 9e-6)."""
    warmup: Advanced[Share] = 0.05
    """Share of the steps over which the learning rate rises."""
    heldout: PartialShare = 0.12
    """Share of the prompts whose rankings are held out from training."""
    reject_degenerate: bool = False
    """Add an empty, one-word, stock, repeated or copied response to each ranking, as its worst, and rank demonstrations
    before one. See the probe at the end of a training for whether this is needed."""
    demonstrations: Advanced[Count] = 256
    """Number of demonstrations, or of best-ranked responses, whose mean score is set to 0."""


def reward(
    base: Path,
    comparisons: tuple[Path, ...],
    out: Path,
    demos: tuple[Path, ...] = (),
    panel: Path | None = None,
    config: RewardConfig = RewardConfig(),
) -> None:
    """Train a reward model on rankings, starting from the SFT model.

    base: SFT run to start from.
    comparisons: Files with comparisons or pairs to train on: JSONL, or one JSON array. Or a server's data folder or
    database URL.
    out: Run directory to write.
    demos: Files with demonstrations, or a server's data folder or database URL. The mean score of some of them is set
    to 0. Without them it is that of the best-ranked responses.
    panel: Panel file (panel.json). With it the accuracy is compared with that of the noise-free gold score.

    Example: tutelage reward --base runs/sft --comparisons ranks.jsonl --out runs/reward
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
        sets = read_ranking_sets(comparisons, tokenizer, trunk.config.context, config.heldout, "reward")
        good, others = good_responses(sets, demos, model, tokenizer, config, run.generator("demonstrations"))
        rankings = sets.rankings
        if config.reject_degenerate:
            context, salt = trunk.config.context, str(config.seed)
            rankings = with_losers(sets.kept, rankings, tokenizer, context, salt)
            rankings += demonstrations_first(others, tokenizer, context, salt)
        steps = train(run, config, model, rankings, tokenizer.pad_id)
        model.eval()
        scores = conversation_scores(model, tokenizer, good)
        model.mean, model.std = float(scores.mean()), float(scores.std(correction=0))
        results: dict[str, Any] = accuracy_report(model, tokenizer, sets.heldout, Panel.load(panel) if panel else None)
        results |= {"probe": probe(model, tokenizer, good)}
        save_tuned_scorer(out, model, tokenizer, base, config)
        results |= {"reward_mean": model.mean, "reward_std": model.std}
        results |= sets.counts
        run.finish(results, ending(run, base, config, results, steps, sets.left_out.sentences))


def ending(
    run: Run, base: Path, config: RewardConfig, results: dict[str, Any], steps: int, left_out: Sequence[str]
) -> Ending:
    accuracy, ceiling = results["accuracy"], results["ceiling"]
    known = "chance is 50%" + (f", the panel's gold score reaches {ceiling:.1%}" if ceiling is not None else "")
    warnings = [*left_out, *short_training(steps, "give more rankings or a smaller --batch")]
    if accuracy is None:
        warnings.append("no ranking was held out, so the accuracy is unknown; raise --heldout")
    elif accuracy <= 0.5:
        warnings.append("the reward model is no better than chance on held-out pairs; give more rankings")
    warnings += probe_warnings(results["probe"], config.reject_degenerate)
    return Ending(
        f"trained on {counted(results['rankings'], 'ranking')} in {counted(steps, 'step')}",
        [
            Figure(f"accuracy on {results['heldout_pairs']:,} held-out pairs", accuracy, note=known, format=".1%"),
            training_loss(read_metrics(run.metrics.path)),
            probe_figure(results["probe"]),
        ],
        warnings,
        [command("ppo", "--policy", base, "--reward", run.out, "..."), command("score", run.out, "FILE.jsonl")],
    )


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


def good_responses(
    sets: RankingSets,
    demos: Sequence[Path],
    model: ScalarGPT,
    tokenizer: Tokenizer,
    config: RewardConfig,
    generator: torch.Generator,
) -> tuple[list[Messages], list[Messages]]:
    """Conversations that end with a good response: those whose mean score is set to 0, and others to train on.

    With --reject-degenerate up to one demonstration per ranking is trained on, and at least half is kept for the mean.
    """
    if not demos:
        return best(sets, config, generator), []
    extra = len(sets.rankings) if config.reject_degenerate else 0
    found = demonstrations(model, tokenizer, demos, config.demonstrations + extra, generator)
    kept = min(config.demonstrations, -(-len(found) // 2)) if extra else len(found)
    return found[:kept], found[kept:]


def best(sets: RankingSets, config: RewardConfig, generator: torch.Generator) -> list[Messages]:
    """Conversations that end with a best-ranked response, each once; for want of demonstrations."""
    ranked = zip(sets.kept, sets.rankings, strict=True)
    known = {tuple(r.sequences[r.ranks.index(min(r.ranks))]): ending_with(c, best_response(c)) for c, r in ranked}
    chosen = torch.randperm(len(known), generator=generator)[: config.demonstrations].tolist()
    return [list(known.values())[i] for i in chosen]


def demonstrations(
    model: ScalarGPT, tokenizer: Tokenizer, demos: Sequence[Path], count: int, generator: torch.Generator
) -> list[Messages]:
    """Up to `count` conversations that end with a demonstration: the first window of each that fits DEMONSTRATION
    tokens or half the context, whichever is less.
    """
    read = read_demonstrations(demos)
    limit = min(model.trunk.config.context, 2 * DEMONSTRATION) // 2
    chosen: list[Messages] = []
    for i in torch.randperm(len(read), generator=generator).tolist():
        if len(chosen) >= count:
            break
        with located(read[i].where):
            fitting, _ = windows(read[i].messages, lambda messages: training_size(tokenizer, messages), limit)
        chosen += fitting[:1]
    if not chosen:
        raise InputError(
            f"reward: no demonstration fits {limit} tokens, so no score can be set to 0; give shorter ones or leave "
            "--demos out"
        )
    return chosen


@torch.no_grad()
def conversation_scores(model: ScalarGPT, tokenizer: Tokenizer, conversations: Sequence[Messages]) -> Tensor:
    """(N,) scores of the conversations' last responses."""
    texts = [encode_response(messages[:-1], messages[-1]["content"], tokenizer) for messages in conversations]
    return torch.cat(score_texts(model, [[text] for text in texts], tokenizer.pad_id))
