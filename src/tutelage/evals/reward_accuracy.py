"""How often a reward model orders held-out pairs as the annotators do.

reward model, held-out comparisons -> accuracy, overall and on pairs of equal length, and the panel's own accuracy
"""

from collections.abc import Sequence

import torch

from tutelage.data.panel import Panel
from tutelage.data.rankings import encode_ranking, length_matched, strict_pairs
from tutelage.data.records import Comparison
from tutelage.evals.preference import mean, preference
from tutelage.learning.losses import ranking_loss
from tutelage.model.heads import ScalarGPT
from tutelage.model.shared_prefix import score_texts
from tutelage.text.tokenizer import Tokenizer


@torch.no_grad()
def accuracy_report(
    model: ScalarGPT, tokenizer: Tokenizer, heldout: Sequence[Comparison], panel: Panel | None
) -> dict[str, float | None]:
    """Accuracy on held-out strict pairs, overall and on pairs of equal length, and the gold score's accuracy on them.

    Figures that cannot be measured are None: all of them without held-out pairs, the gold score's without a panel.
    """
    right: list[float] = []
    gold: list[float] = []
    matched: list[bool] = []
    losses: list[float] = []
    rankings = [encode_ranking(comparison, tokenizer) for comparison in heldout]
    each = score_texts(model, [ranking.sequences for ranking in rankings], tokenizer.pad_id)
    for comparison, ranking, scores in zip(heldout, rankings, each, strict=True):
        losses.append(float(ranking_loss(scores[None], torch.tensor([ranking.ranks], device=scores.device))))
        matched += length_matched(comparison, tokenizer)
        for winner, loser in strict_pairs(ranking.ranks):
            right.append(preference(float(scores[winner]), float(scores[loser])))
            if panel:
                responses = comparison.responses
                gold.append(panel.gold_preference(comparison.prompt, responses[winner], responses[loser]))
    accuracy, ceiling = mean(right), mean(gold)
    return {
        "accuracy": accuracy,
        "ceiling": ceiling,
        "accuracy_of_ceiling": accuracy / ceiling if accuracy is not None and ceiling else None,
        "length_matched_accuracy": mean([r for r, m in zip(right, matched, strict=True) if m]),
        "heldout_loss": mean(losses),
        "heldout_pairs": len(right),
    }
