"""Several rewards combined into one, so that the policy finds fewer errors to exploit (Coste et al. 2024).

    members' scores -> divided by each member's scale -> combined (`learning/ensembles.py`) -> times the mean scale

A reward model's scale is the standard deviation of its scores of the demonstrations, `reward_std` in its config.json.
Their mean is 0 already. The result is multiplied by the mean scale of the reward models. An ensemble of copies of one
model therefore equals that model, and --kl-coef and --missing-end keep their meaning. Functions and HTTP scorers have
no scale: the mean scale stands in for it, so their scores keep their units.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tutelage.data.messages import Messages
from tutelage.learning.ensembles import combine
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.reward import Group, Reward
from tutelage.sampling.rollout import Responses


class Ensemble:
    """A `Reward` whose members all score the same responses."""

    def __init__(self, members: Sequence[Reward], config: RewardsConfig):
        self.members, self.config = members, config
        self.models = [model for member in members for model in member.models]
        known = [model.std for model in self.models if model.std]
        self.mean_scale = sum(known) / len(known) if known else 1.0
        self.scales = [next((m.std for m in member.models if m.std), self.mean_scale) for member in members]

    def score(self, conversations: Sequence[Messages]) -> Tensor:
        return self._combined(lambda member: member.score(conversations))

    def score_groups(self, groups: Sequence[Group], conversations: Sequence[Sequence[Messages]]) -> list[Tensor]:
        flat = self._combined(lambda member: torch.cat(member.score_groups(groups, conversations)))
        return list(flat.split([len(group) for group in groups]))

    def score_responses(self, responses: Responses, conversations: Sequence[Messages]) -> Tensor:
        return self._combined(lambda member: member.score_responses(responses, conversations))

    def _combined(self, scores_by: Callable[[Reward], Tensor]) -> Tensor:
        scores = [scores_by(member) / scale for member, scale in zip(self.members, self.scales, strict=True)]
        stacked = torch.stack([score.to(scores[0].device, torch.float32) for score in scores])
        return self.mean_scale * combine(stacked, self.config.ensemble, self.config.uwo_lambda)
