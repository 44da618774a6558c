"""Several rewards as one: fewer mistakes that all of them share, for a policy to find (Coste et al. 2024).

    members' scores -> on one scale -> combined (`learning/ensembles.py`) -> reward units

A reward model's scale is the standard deviation of its scores of demonstrations, `reward_std` in its config.json;
their mean is 0 already. What comes out is in the members' mean scale, so that an ensemble of the same model is that
model and --kl-coef and --missing-end keep their meaning. Functions and HTTP scorers are taken as they are.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tutelage.data.records import Messages
from tutelage.learning.ensembles import combine
from tutelage.rewards.config import RewardsConfig
from tutelage.rewards.reward import Group, Reward
from tutelage.sampling.rollout import Responses


class Ensemble:
    """Members that judge the same answers."""

    def __init__(self, members: Sequence[Reward], config: RewardsConfig):
        self.members, self.config = members, config
        self.models = [model for member in members for model in member.models]
        known = [model.std for model in self.models if model.std]
        self.unit = sum(known) / len(known) if known else 1.0
        self.scales = [next((m.std for m in member.models if m.std), self.unit) for member in members]

    def score(self, conversations: Sequence[Messages]) -> Tensor:
        return self._combined(lambda member: member.score(conversations))

    def score_groups(self, groups: Sequence[Group], conversations: Sequence[Sequence[Messages]]) -> list[Tensor]:
        flat = self._combined(lambda member: torch.cat(member.score_groups(groups, conversations)))
        return list(flat.split([len(group) for group in groups]))

    def score_responses(self, responses: Responses, conversations: Sequence[Messages]) -> Tensor:
        return self._combined(lambda member: member.score_responses(responses, conversations))

    def _combined(self, scores_by: Callable[[Reward], Tensor]) -> Tensor:
        scores = [scores_by(member) / scale for member, scale in zip(self.members, self.scales, strict=True)]
        alike = torch.stack([score.to(scores[0].device, torch.float32) for score in scores])
        return self.unit * combine(alike, self.config.ensemble, self.config.uwo_lambda)
