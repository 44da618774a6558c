"""Compute reference values of TRL's reward loss for tests/learning/test_ranking_loss.py. Needs trl 0.19.1; run once.

    python scripts/trl_reward_loss.py > tests/learning/trl_reward_loss.json

TRL trains on pairs, so all strict pairs of a ranking are passed to `RewardTrainer.compute_loss`. Its model here is a
table of scores.
"""

import json
from types import SimpleNamespace

import torch
import trl
from trl import RewardTrainer


def trl_loss(scores: torch.Tensor, ranks: list[int]) -> float:
    pairs = [(w, r) for w in range(len(ranks)) for r in range(len(ranks)) if ranks[w] < ranks[r]]
    chosen, rejected = (torch.tensor([pair[side] for pair in pairs])[:, None] for side in (0, 1))

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor, return_dict: bool) -> dict[str, torch.Tensor]:
        return {"logits": scores[input_ids]}

    inputs = {
        "input_ids_chosen": chosen, "attention_mask_chosen": torch.ones_like(chosen),
        "input_ids_rejected": rejected, "attention_mask_rejected": torch.ones_like(rejected),
    }  # fmt: skip
    trainer = SimpleNamespace(args=SimpleNamespace(center_rewards_coefficient=None))
    return RewardTrainer.compute_loss(trainer, model, inputs).item()


def main() -> None:
    generator = torch.Generator().manual_seed(16)
    cases = []
    for ranks in ([1, 2], [2, 1, 3], [1, 2, 2, 3], [4, 2, 1, 3], [3, 1, 1, 2, 4], [9, 7, 8, 1, 2, 6, 5, 3, 4]):
        scores = 2 * torch.randn(len(ranks), generator=generator)
        cases.append({"scores": scores.tolist(), "ranks": ranks, "loss": trl_loss(scores, ranks)})
    print(json.dumps({"trl": trl.__version__, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
